//! Pulls that are tried, by JSON and on a terminal.

use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::process::Stdio;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_is_tried_and_nothing_is_stored() {
    let cluster = cluster().await;
    let [one, two, _] = cluster.nodes() else {
        panic!("three nodes")
    };
    let image = seeded(&cluster).await;

    let events = tried(two, &image.reference()).await;

    let ended = events.last().unwrap();
    assert_eq!(
        (&ended["event"], &ended["ok"]),
        (&json!("ended"), &json!(true)),
        "{events:?}"
    );
    assert_eq!(
        of(&events, "manifest").count(),
        2,
        "the index and the image"
    );
    let fetched: Vec<&Value> = of(&events, "fetched").collect();
    assert_eq!(fetched.len(), 3, "{events:?}");
    let at = json!(one.registry());
    assert!(
        fetched
            .iter()
            .all(|event| event["source"] == "peer" && event["at"] == at),
        "{fetched:?}"
    );
    assert!(image.blobs().all(|blob| !two.layout().holds(&blob.digest)));
    let counted = two
        .metric("peili_mirror_requests_total", &[])
        .await
        .unwrap();
    let saved = two
        .metric("peili_registry_bytes_saved_total", &[])
        .await
        .unwrap();
    assert_eq!((counted, saved), (0.0, 0.0), "a trial is nobody's pull");
    let pulls = told(two, "pulls").await;
    assert_eq!(pulls["pulls"][0]["requests"][0]["by"], "trial");
    // The one who holds it is told so.
    let local = tried(one, &image.reference()).await;
    assert!(
        of(&local, "fetched").all(|event| event["source"] == "local"),
        "{local:?}"
    );

    let registry = two.registry().to_string();
    let nowhere = ["--basic-auth-dir", "/nonexistent"];
    let run = |args: &[&str]| {
        peili(&[&["pull", "--registry-addr", &registry][..], &nowhere, args].concat())
    };
    let output = run(&[&image.reference()]);
    let said = text(&output.stdout);
    assert_eq!(
        output.status.code(),
        Some(0),
        "{said}{}",
        text(&output.stderr)
    );
    for words in [
        format!("verified  {}", image.layers[0].digest),
        format!("from {}", one.registry()),
        "nothing was stored".into(),
    ] {
        assert!(said.contains(&words), "{said}");
    }
    let output = run(&[&image.reference(), "--format", "json"]);
    let last: Value = serde_json::from_str(text(&output.stdout).lines().last().unwrap()).unwrap();
    assert_eq!(
        (&last["event"], &last["ok"]),
        (&json!("ended"), &json!(true))
    );
    let output = run(&[&format!("{REGISTRY}/test/nobody-has-it:v1")]);
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("no peer holds") && said.contains("once one has pulled it"),
        "{said}"
    );
    let output = run(&[&image.reference(), "--platform", "plan9/mips"]);
    assert!(
        text(&output.stdout).contains("no image for plan9/mips; there are "),
        "{}",
        text(&output.stdout)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_is_wrong_is_not_called_right() {
    let cluster = cluster().await;
    let [one, two, _] = cluster.nodes() else {
        panic!("three nodes")
    };
    let image = seeded(&cluster).await;
    let layer = &image.layers[1];
    let damaged = one.layout().path_of(&layer.digest);
    let mut bytes = std::fs::read(&damaged).unwrap();
    bytes[1000] ^= 1;
    // Another file, as a disk's damage has no inotify event either.
    std::fs::remove_file(&damaged).unwrap();
    std::fs::write(&damaged, bytes).unwrap();

    let events = eventually("an answer", AT_ALL, async || {
        let events = tried(two, &image.reference()).await;
        let is_absent = of(&events, "failed").any(|e| e["error"].as_str().unwrap().contains("404"));
        Ok((!is_absent).then_some(events))
    })
    .await
    .unwrap();

    let failed: Vec<&Value> = of(&events, "failed").collect();
    assert_eq!(failed.len(), 1, "{events:?}");
    assert_eq!(failed[0]["digest"], layer.digest.as_str());
    assert!(
        failed[0]["error"]
            .as_str()
            .unwrap()
            .starts_with("what came is not sha256:"),
        "{failed:?}"
    );
    assert!(
        failed[0]["cure"].as_str().unwrap().contains("disk"),
        "{failed:?}"
    );
    assert_eq!(of(&events, "fetched").count(), 2);
    let ended = events.last().unwrap();
    assert_eq!((&ended["ok"], &ended["failed"]), (&json!(false), &json!(1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_brings_the_password_and_the_token() {
    let cluster = Loopback::new(3).unwrap();
    let secret = cluster.folder("secret").unwrap();
    std::fs::write(secret.join("username"), "user").unwrap();
    std::fs::write(secret.join("password"), "pass").unwrap();
    let data = |node: &LoopbackNode| {
        let dir = cluster.folder(&format!("{}-data", node.name())).unwrap();
        dir.display().to_string()
    };
    for node in cluster.nodes() {
        peili::node_token::load_or_create(Path::new(&data(node))).unwrap();
    }
    let secret = secret.display().to_string();
    let more = |node: &LoopbackNode| {
        let words = ["--basic-auth-dir", &secret, "--data-dir", &data(node)];
        words.map(str::to_string).into()
    };
    cluster.start_with(Path::new(PEILI), more).await.unwrap();
    let two = &cluster.nodes()[1];
    let image = seeded(&cluster).await;

    let events = tried(two, &image.reference()).await;
    assert_eq!(events.last().unwrap()["ok"], true, "{events:?}");

    let (registry, data) = (two.registry().to_string(), data(two));
    let run = |args: &[&str]| {
        let output = peili(
            &[
                &["pull", &image.reference(), "--registry-addr", &registry][..],
                args,
            ]
            .concat(),
        );
        (output.status.code(), text(&output.stdout))
    };
    let (code, said) = run(&["--basic-auth-dir", &secret, "--data-dir", &data]);
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = run(&["--basic-auth-dir", "/nonexistent", "--data-dir", &data]);
    assert_eq!(code, Some(1));
    assert!(
        said.contains("401") && said.contains("--basic-auth-dir"),
        "{said}"
    );
    let (code, said) = run(&["--basic-auth-dir", &secret]);
    assert_eq!(code, Some(1));
    assert!(
        said.contains("token") && said.contains("--data-dir"),
        "{said}"
    );
}

/// A terminal: what its owner reads, and what is given to a program.
fn terminal() -> (std::fs::File, OwnedFd) {
    let owner = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&owner).unwrap();
    unlockpt(&owner).unwrap();
    let size = Winsize {
        ws_row: 40,
        ws_col: 160,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(&owner, size).unwrap();
    let name = ptsname(&owner, Vec::new()).unwrap();
    let programs = std::fs::File::options()
        .read(true)
        .write(true)
        .open(name.to_str().unwrap())
        .unwrap();
    (owner.into(), programs.into())
}

/// All that a command writes to a terminal, and what it writes to stderr, which is none. Its exit code, too.
fn on_a_terminal(args: &[&str]) -> (Option<i32>, String, String) {
    let (mut owner, programs) = terminal();
    let mut command = Command::new(PEILI);
    command.args(args).env("TERM", "xterm-256color");
    command.stdout(Stdio::from(programs)).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    // Or this process would hold the terminal open, and the owner would read for ever.
    drop(command);
    let reader = std::thread::spawn(move || {
        let mut all = Vec::new();
        let mut bytes = [0; 4096];
        // Linux says EIO once the last program has closed it.
        while let Ok(read @ 1..) = owner.read(&mut bytes) {
            all.extend_from_slice(&bytes[..read]);
        }
        all
    });
    let out = child.wait_with_output().unwrap();
    let all = reader.join().unwrap();
    (out.status.code(), text(&all), text(&out.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_shows_bars_and_everything_else_gets_lines() {
    const ESCAPE: char = '\x1b';
    let cluster = cluster().await;
    let [one, two, _] = cluster.nodes() else {
        panic!("three nodes")
    };
    let image = seeded(&cluster).await;
    let (registry, reference) = (two.registry().to_string(), image.reference());
    let nowhere = ["--basic-auth-dir", "/nonexistent"];
    let pull = |reference, more: &[&'static str]| {
        let at = ["pull", reference, "--registry-addr", &registry];
        [&at[..], &nowhere, more].concat()
    };

    let (code, shown, said) = on_a_terminal(&pull(&reference, &[]));

    assert_eq!((code, said.as_str()), (Some(0), ""), "{shown}");
    // Drawn over one another, with the last state of each at its full length.
    assert!(shown.contains(ESCAPE), "{shown:?}");
    let full = "█".repeat(30);
    for blob in image.layers.iter().chain([&image.config]) {
        let last = shown
            .split(['\r', '\n'])
            .rfind(|line| line.contains(&blob.digest[..19]));
        let last = last.unwrap_or_else(|| panic!("{} in {shown:?}", blob.digest));
        assert!(last.contains(&full), "{last:?}");
        assert!(
            last.contains(&format!("from {}", one.registry())),
            "{last:?}"
        );
    }
    assert!(!shown.contains("verified  "), "a bar says it: {shown:?}");
    assert!(shown.contains("nothing was stored"), "{shown:?}");

    let absent = format!("{REGISTRY}/test/nobody-has-it:v1");
    let (code, shown, _) = on_a_terminal(&pull(&absent, &[]));
    assert_eq!(code, Some(1));
    assert!(shown.contains("no peer holds"), "{shown:?}");

    // Who wants JSON gets it, wherever it goes.
    let (code, shown, _) = on_a_terminal(&pull(&reference, &["--format", "json"]));
    assert_eq!(code, Some(0));
    assert!(!shown.contains(ESCAPE), "{shown:?}");
    for line in shown.lines() {
        serde_json::from_str::<Value>(line).unwrap_or_else(|e| panic!("{e}: {line:?}"));
    }

    let output = peili(&pull(&reference, &[]));
    let lines = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{lines}");
    assert!(!lines.contains([ESCAPE, '\r', '█']), "{lines:?}");
    let verified = lines.lines().filter(|line| line.starts_with("verified  "));
    assert_eq!(verified.count(), 3, "{lines}");
}
