//! What docs/operating.md shows.

use super::*;

/// The two examples of docs/operating.md.
#[test]
fn the_examples_in_the_docs_are_what_the_doctor_says() {
    const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operating.md");
    let told = |facts: &Facts| {
        let report = Report {
            distribution: facts.profile.name,
            findings: all(facts),
        };
        let mut out = Vec::new();
        report.text(&mut out).unwrap();
        let said = String::from_utf8(out).unwrap();
        format!(
            "```\n$ peili doctor\n{said}$ echo $?\n{}\n```\n",
            report.verdict().exit_code()
        )
    };
    let well = healthy_2();
    let mut ill = healthy_2();
    *observed(&mut ill) = Observed {
        pulls: 3,
        pulls_past_us: 3,
        past_us: Some("docker.io/library/nginx:1.29".into()),
        images: 24,
        without_layers: 24,
        without: Some("docker.io/library/nginx:1.29".into()),
        ..Observed::default()
    };
    ill.profile = crate::doctor::profile::detect(&crate::doctor::profile::Signs {
        kernel: "Linux version 6.1.134-152.225.amzn2023.x86_64".into(),
        ..Default::default()
    });
    ill.bootstrap[0].name = "peili-bootstrap.peili.svc.cluster.local.".into();
    let (begin, middle, end) = (
        "On a healthy node of a cluster of five:\n\n",
        "\nOn one whose containerd 2.x reads no directory and discards its layers:\n\n",
        "\nWhat each line is about:\n",
    );
    let examples = format!("{begin}{}{middle}{}{end}", told(&well), told(&ill));
    let mut page = std::fs::read_to_string(PAGE).unwrap();
    if std::env::var_os("PEILI_WRITE_DOCS").is_some() {
        let (before, rest) = page.split_once(begin).expect("where it begins");
        let (_, after) = rest.split_once(end).expect("where it ends");
        page = format!("{before}{examples}{after}");
        std::fs::write(PAGE, &page).unwrap();
    }

    assert!(
        page.contains(&examples),
        "docs/operating.md: run make docs\n{examples}"
    );
}
