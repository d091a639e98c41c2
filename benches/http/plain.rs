//! The least that can be done: a thread for each connection, a head, and sendfile(2) until the file is sent.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;

use anyhow::{Context as _, Result};

/// As much as the kernel takes at once.
const MOST: usize = 0x7fff_f000;

/// Serves the files below `root` for ever.
pub fn serve(root: &Path, port: u16) -> Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", port))?;
    for stream in listener.incoming() {
        let (stream, root) = (stream?, root.to_owned());
        std::thread::spawn(move || {
            // Whoever asks leaves in the middle of the last answer.
            let _ = answer(stream, &root);
        });
    }
    Ok(())
}

fn answer(stream: TcpStream, root: &Path) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut stream = stream;
    loop {
        let mut path = None;
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            if line == "\r\n" {
                break;
            }
            path = path.or_else(|| line.split(' ').nth(1).map(str::to_owned));
        }
        let path = path.context("no request line")?;
        let file = File::open(root.join(path.trim_start_matches('/')))?;
        let size = file.metadata()?.len();
        write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {size}\r\n\r\n")?;
        let mut at = 0;
        while at < size {
            rustix::fs::sendfile(&stream, &file, Some(&mut at), MOST)?;
        }
    }
}
