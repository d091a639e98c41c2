use std::time::{SystemTime, UNIX_EPOCH};

use super::*;

const ONE: &str = "the first secret of all";
const TWO: &str = "the second secret of all";

fn members(lines: &[&str]) -> (tempfile::NamedTempFile, Members) {
    let file = tempfile::NamedTempFile::new().expect("tempfile");
    std::fs::write(file.path(), lines.join("\n")).expect("write");
    let members = Members::load(file.path()).expect("readable");
    (file, members)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Computed with Python's hmac and struct modules. Whoever changes them shuts the releases before out.
#[test]
fn version_1_is_these_bytes() {
    let (_file, members) = members(&["0123456789abcdef0123456789abcdef"]);
    let claim = Claim::new("label").with("").with([0xff, 0x00]);
    assert_eq!(hex(&claim.0), "000000056c6162656c0000000000000002ff00");
    assert_eq!(
        hex(&members.prove(&claim)),
        "e35a3851149efa37f845eb1c282194331044e5a9fa131b478f7741f66d771799"
    );

    let asked = Request {
        to: "12D3KooWPeer",
        method: "GET",
        path_and_query: "/v2/library/nginx/manifests/1.27?ns=docker.io",
        range: "bytes=7-",
    };
    let names = ["other".to_string(), "12D3KooWPeer".to_string()];
    let now = UNIX_EPOCH + Duration::from_secs(1_790_000_000);
    let header = "v=1; t=1790000000; n=000102030405060708090a0b0c0d0e0f; \
                  p=a2ed62407ce3a312caddac0e3060f7dcff37256d60c199e9118599f778d3f317";
    let admitted = members
        .admit([header].into_iter(), &asked, &names, now)
        .expect("version 1");
    let digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    assert_eq!(
        members.vouch(&admitted, asked.path_and_query, digest),
        "v=1; p=99612d344331cbe84805744ca5987da4361f4ef0b405fe7d3d42ee22865dd645"
    );
}

const ASKED: Request = Request {
    to: "me",
    method: "GET",
    path_and_query: "/v2/a/blobs/sha256:00?ns=a.test",
    range: "",
};

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

#[test]
fn a_proof_is_good_for_what_it_was_made_for_and_nothing_else() {
    let (_file, members) = members(&[ONE]);
    let (header, _) = members.request(&ASKED, at(10_000));
    let names = ["me".to_string(), "at 192.0.2.7:5000".to_string()];
    let judged = |asked: &Request, header: &str, seconds| {
        let admitted = members.admit([header].into_iter(), asked, &names, at(seconds));
        admitted.map(drop)
    };
    assert_eq!(judged(&ASKED, &header, 10_000), Ok(()));

    for (asked, what) in [
        (
            Request {
                method: "HEAD",
                ..ASKED
            },
            "method",
        ),
        (
            Request {
                path_and_query: "/v2/a/blobs/sha256:01?ns=a.test",
                ..ASKED
            },
            "path",
        ),
        (
            Request {
                path_and_query: "/v2/a/blobs/sha256:00",
                ..ASKED
            },
            "query",
        ),
        (
            Request {
                range: "bytes=0-",
                ..ASKED
            },
            "range",
        ),
    ] {
        assert_eq!(
            judged(&asked, &header, 10_000),
            Err(Refused::Unknown),
            "{what}"
        );
    }
    let (elsewhere, _) = members.request(&Request { to: "you", ..ASKED }, at(10_000));
    assert_eq!(judged(&ASKED, &elsewhere, 10_000), Err(Refused::Unknown));
    let hinted = Request {
        to: "at 192.0.2.7:5000",
        ..ASKED
    };
    let (hinted, _) = members.request(&hinted, at(10_000));
    assert_eq!(judged(&ASKED, &hinted, 10_000), Ok(()));

    for (seconds, expected) in [
        (10_300, Ok(())),
        (10_301, Err(Refused::Clock(-301))),
        (9_700, Ok(())),
        (9_699, Err(Refused::Clock(301))),
    ] {
        assert_eq!(judged(&ASKED, &header, seconds), expected, "{seconds}");
    }
    let said = Refused::Clock(-301).to_string();
    assert!(
        said.contains("301 s behind") && said.contains("300 s"),
        "{said}"
    );

    // A later release says more, in the same header or beside it.
    let more = format!("{header}; x=more; y");
    assert_eq!(judged(&ASKED, &more, 10_000), Ok(()));
    let both = ["v=2; p=other", &header];
    let admitted = members.admit(both.into_iter(), &ASKED, &names, at(10_000));
    assert!(admitted.is_ok());

    let long = format!("{header}; n={}", "0".repeat(65));
    for header in [
        "",
        "v=1",
        "v=2; p=00",
        "p",
        "v=1; t=; n=; p=",
        "v=1; t=99999999999999999999",
        &long,
        "ö=ö",
    ] {
        assert_eq!(
            judged(&ASKED, header, 10_000),
            Err(Refused::Unproven),
            "{header}"
        );
    }
    let forged = format!("{}0", &header[..header.len() - 1]);
    let other = format!("{}1", &header[..header.len() - 1]);
    let refused = [
        judged(&ASKED, &forged, 10_000),
        judged(&ASKED, &other, 10_000),
    ];
    assert!(refused.contains(&Err(Refused::Unknown)), "{refused:?}");
}

#[test]
fn a_tag_is_vouched_for_one_request_and_one_digest() {
    let (_file, ours) = members(&[ONE]);
    let (_other, theirs) = members(&[TWO]);
    let path = "/v2/a/manifests/v1?ns=a.test";
    let (_, asked) = ours.request(&ASKED, at(1));
    let (_, later) = ours.request(&ASKED, at(1));
    let said = ours.vouch(&asked, path, "sha256:00");

    assert!(ours.is_vouched(&said, &asked, path, "sha256:00"));
    assert!(!ours.is_vouched(&said, &asked, path, "sha256:01"));
    assert!(!ours.is_vouched(&said, &later, path, "sha256:00"));
    assert!(!ours.is_vouched(&said, &asked, "/v2/a/manifests/v2?ns=a.test", "sha256:00"));
    assert!(!theirs.is_vouched(&said, &asked, path, "sha256:00"));
    assert!(!ours.is_vouched("", &asked, path, "sha256:00"));
}

#[test]
fn the_first_proves_all_verify_and_a_change_is_followed() {
    let (file, ours) = members(&[ONE]);
    let (other, theirs) = members(&[ONE]);
    let claim = Claim::new("test");
    let trust = |a: &Members, b: &Members| {
        let (from_a, from_b) = (a.prove(&claim), b.prove(&claim));
        b.verify(&claim, &from_a).is_some() && a.verify(&claim, &from_b).is_some()
    };
    let old = ours
        .verify(&claim, &theirs.prove(&claim))
        .expect("both have it");

    // At each step one of the two is behind.
    for lines in [&[ONE, TWO][..], &[TWO, ONE], &[TWO]] {
        for (file, members) in [(&file, &ours), (&other, &theirs)] {
            std::fs::write(file.path(), lines.join("\n")).expect("write");
            members.look();
            assert!(trust(&ours, &theirs), "{lines:?}");
        }
        assert_eq!(old.is_cancelled(), lines == [TWO], "{lines:?}");
    }
    assert_eq!(ours.secrets(), 1);
    let new = ours
        .verify(&claim, &theirs.prove(&claim))
        .expect("both have it");

    // What cannot be read opens nothing and shuts nothing.
    for broken in ["", "short", "# only this"] {
        std::fs::write(file.path(), broken).expect("write");
        ours.look();
        assert!(trust(&ours, &theirs) && !new.is_cancelled(), "{broken}");
    }
    file.close().expect("removed");
    ours.look();
    assert!(trust(&ours, &theirs) && !new.is_cancelled());
    assert!(!format!("{ours:?}").contains("secret of all"));
}

#[test]
fn a_secret_that_is_swapped_as_the_kubelet_does_it_is_read() {
    let volume = tempfile::tempdir().expect("tempdir");
    let at = |name: &str| volume.path().join(name);
    for (directory, secret) in [("1", ONE), ("2", TWO)] {
        std::fs::create_dir(at(directory)).expect("mkdir");
        std::fs::write(at(directory).join("secret"), secret).expect("write");
    }
    std::os::unix::fs::symlink("1", at("..data")).expect("link");
    std::os::unix::fs::symlink("..data/secret", at("secret")).expect("link");
    let ours = Members::load(&at("secret")).expect("readable");
    let claim = Claim::new("test");
    let before = ours.prove(&claim);

    std::os::unix::fs::symlink("2", at("..new")).expect("link");
    std::fs::rename(at("..new"), at("..data")).expect("swap");
    ours.look();

    assert_ne!(ours.prove(&claim), before);
    assert!(ours.verify(&claim, &before).is_none());
}

#[test]
fn a_file_that_cannot_be_used_is_refused_with_its_option_its_name_and_the_cure() {
    let directory = tempfile::tempdir().expect("tempdir");
    let absent = directory.path().join("absent");
    let short = directory.path().join("short");
    std::fs::write(&short, "# mine\nhunter2\n").expect("write");
    let pipe = directory.path().join("pipe");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &pipe,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .expect("a pipe");
    for (path, reason) in [
        (absent.as_path(), "No such file"),
        (&pipe, "no file"),
        (directory.path(), "no file"),
        (&short, ", line 2, has a secret of 7 bytes"),
    ] {
        let said = Members::load(path).expect_err(reason).to_string();

        let name = format!("{OPTION} {:?}", path.display().to_string());
        assert!(said.starts_with(&name), "{said}");
        assert!(
            said.contains(reason) && said.contains("openssl rand"),
            "{said}"
        );
        assert!(!said.contains("hunter2"), "{said}");
    }
}
