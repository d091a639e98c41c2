//! Answers that are wrong: what is done to their heads.

use std::io;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::tcp::WriteHalf;

/// What goes wrong with answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    #[default]
    Pass,
    /// A reset instead of the next byte.
    Reset,
    /// No further byte, and no end.
    Silent,
    /// Half of the length, and half of the body.
    HalfLength,
    Errors,
    /// The head a byte each quarter of a second.
    SlowHead,
    /// 300 ms later, at 1 MB/s.
    SlowLink,
}

/// Four bytes a second.
pub async fn slowly(to: &mut WriteHalf<'_>, head: &[u8]) -> io::Result<()> {
    for byte in head {
        to.write_all(&[*byte]).await?;
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    Ok(())
}

/// The head with half of its Content-Length, and that.
pub fn halved(head: &[u8]) -> (Vec<u8>, u64) {
    let text = String::from_utf8_lossy(head);
    let mut half = u64::MAX;
    let lines: Vec<String> = text
        .split("\r\n")
        .map(|line| match line.split_once(':') {
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                let length = value.trim().parse::<u64>().unwrap_or(0) / 2;
                if length > 0 {
                    half = length;
                }
                format!("{name}: {length}")
            }
            _ => line.to_owned(),
        })
        .collect();
    (lines.join("\r\n").into_bytes(), half)
}
