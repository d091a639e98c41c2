use std::os::unix::fs::PermissionsExt as _;

use super::*;

fn at(n: u16) -> SocketAddr {
    SocketAddr::from(([10, 0, (n >> 8) as u8, n as u8], 5001))
}

fn some(numbers: impl IntoIterator<Item = u16>) -> Vec<SocketAddr> {
    numbers.into_iter().map(at).collect()
}

/// What the next process finds.
fn next_life(dir: &Path) -> Vec<SocketAddr> {
    KnownPeers::load(Some(dir), Instant::now()).kept
}

async fn saved(mut known: KnownPeers, connected: Vec<SocketAddr>) {
    known.save(connected, Instant::now());
    known.finish().await;
}

#[tokio::test]
async fn where_peers_are_now_comes_before_where_others_were_and_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let load = || KnownPeers::load(Some(dir.path()), Instant::now());

    saved(load(), some(0..3)).await;
    assert_eq!(next_life(dir.path()), some(0..3));
    saved(load(), some([2, 7])).await;
    assert_eq!(next_life(dir.path()), some([2, 7, 0, 1]));
    saved(load(), vec![]).await;
    assert_eq!(
        next_life(dir.path()).len(),
        4,
        "nobody there is no reason to forget"
    );
    saved(load(), some(100..200)).await;
    assert_eq!(next_life(dir.path()), some(100..132));
    saved(load(), vec!["[fd00::1]:5001".parse().unwrap()]).await;
    assert_eq!(next_life(dir.path())[0].to_string(), "[fd00::1]:5001");
    assert_eq!(
        std::fs::read_dir(dir.path()).unwrap().count(),
        1,
        "nothing temporary is left"
    );
}

#[tokio::test]
async fn nothing_is_written_while_nothing_has_changed() {
    let dir = tempfile::tempdir().unwrap();
    let load = || KnownPeers::load(Some(dir.path()), Instant::now());
    saved(load(), some(0..3)).await;
    let inode = || {
        use std::os::unix::fs::MetadataExt as _;
        std::fs::metadata(dir.path().join(FILE)).unwrap().ino()
    };
    let before = inode();

    saved(load(), some([2, 0])).await;

    assert_eq!(inode(), before);
    saved(load(), some([4])).await;
    assert_ne!(inode(), before);
}

#[test]
fn each_has_its_turn() {
    let mut known = KnownPeers::load(None, Instant::now());
    assert_eq!(known.turn(), []);
    known.kept = some(0..2);
    assert_eq!((known.turn(), known.turn()), (some(0..2), some([1, 0])));
    known.kept = some(0..7);
    known.next = 0;
    assert_eq!(known.turn(), some(0..3));
    assert_eq!(known.turn(), some(3..6));
    assert_eq!(known.turn(), some([6, 0, 1]));
}

#[tokio::test]
async fn a_broken_file_is_replaced_and_one_of_somebody_else_stays() {
    for (content, is_ours) in [
        (&b""[..], true),
        (b"# Peili's known peers, 1. Half a li", true),
        (
            b"# Peili's known peers, 1.\n/ip4/10.0.0.1/tcp/5001\n/ip4/10.0.",
            true,
        ),
        (b"# Peili's known peers, 1.\n/dns4/a/tcp/5001\n", true),
        (b"{\"peers\": []}\n", false),
        (b"\xff\xfe\x00\x01", false),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        std::fs::write(&path, content).unwrap();
        let known = KnownPeers::load(Some(dir.path()), Instant::now());
        assert_eq!(known.kept, [], "{}", content.escape_ascii());

        saved(known, some([1])).await;

        let now = std::fs::read(&path).unwrap();
        assert_eq!(now != content, is_ours, "{}", content.escape_ascii());
        if is_ours {
            assert_eq!(next_life(dir.path()), some([1]));
        }
    }
}

#[tokio::test]
async fn what_is_no_file_is_left_alone_and_waited_for_by_nobody() {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    let pipe = |path: &Path| mknodat(CWD, path, FileType::Fifo, Mode::RUSR, 0).unwrap();
    let directory = |path: &Path| std::fs::create_dir(path).unwrap();
    let link = |path: &Path| std::os::unix::fs::symlink("/etc/hostname", path).unwrap();
    let makes: [&dyn Fn(&Path); 3] = [&pipe, &directory, &link];
    for make in makes {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        make(&path);
        let before = path.symlink_metadata().unwrap().file_type();

        saved(
            KnownPeers::load(Some(dir.path()), Instant::now()),
            some([1]),
        )
        .await;

        assert_eq!(path.symlink_metadata().unwrap().file_type(), before);
    }
}

#[test]
fn a_file_that_is_far_too_long_is_read_in_part_at_the_most() {
    let dir = tempfile::tempdir().unwrap();
    let long = format!("{HEAD}\n{}", "/ip4/10.0.0.1/tcp/5001\n".repeat(1 << 20));
    std::fs::write(dir.path().join(FILE), long).unwrap();
    assert!(next_life(dir.path()).len() <= MAX);
}

#[tokio::test]
async fn a_directory_that_cannot_be_written_to_costs_one_warning_and_nothing_else() {
    // Root may write anywhere but below a file.
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let mut known = KnownPeers::load(Some(&file), Instant::now());
    for n in 0..3 {
        known.save(some([n]), Instant::now());
        while known.writing.as_ref().is_some_and(|w| !w.is_finished()) {
            tokio::task::yield_now().await;
        }
        known.look_after_write();
        assert!(known.warned);
    }
    known.finish().await;
    assert_eq!(std::fs::read(&file).unwrap(), b"");
    let mode = std::fs::metadata(&file).unwrap().permissions().mode();
    assert_ne!(mode & 0o400, 0);
}
