//! A hostile registry: it reads a request and does anything with the socket.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;

/// What is said to whoever asks.
#[derive(Clone, Debug)]
pub enum Says {
    /// And then the connection ends.
    Once(Vec<u8>),
    /// And then nothing, for ever.
    AndStalls(Vec<u8>),
    /// The first, and then the second again and again, as fast as it is taken.
    ForEver(Vec<u8>, Vec<u8>),
    /// The first, and then the second byte by byte, one in so long.
    Slowly(Vec<u8>, Vec<u8>, Duration),
}

impl Says {
    pub fn head(head: &str) -> Vec<u8> {
        format!("{}\r\n\r\n", head.trim().replace('\n', "\r\n")).into_bytes()
    }
}

pub struct Hostile {
    pub address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    /// In bytes, into the socket.
    said: Arc<AtomicU64>,
    _task: AbortOnDropHandle<()>,
}

impl Hostile {
    pub async fn saying(says: Says) -> Self {
        Self::at("127.0.0.1:0", says).await
    }

    pub async fn at(address: &str, says: Says) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (asked, said) = (Arc::default(), Arc::default());
        let (heard, count) = (Arc::clone(&asked), Arc::clone(&said));
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let answering =
                    answer(stream, says.clone(), Arc::clone(&heard), Arc::clone(&count));
                connections.spawn(answering);
            }
        });
        Self {
            address,
            asked,
            said,
            _task: AbortOnDropHandle::new(task),
        }
    }

    /// The heads of all requests.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    pub fn said(&self) -> u64 {
        self.said.load(Ordering::Relaxed)
    }
}

async fn answer(
    mut stream: TcpStream,
    says: Says,
    asked: Arc<Mutex<Vec<String>>>,
    said: Arc<AtomicU64>,
) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    asked
        .lock()
        .unwrap()
        .push(String::from_utf8_lossy(&head).to_lowercase());
    let mut say = async |bytes: &[u8]| {
        let written = stream.write_all(bytes).await.is_ok();
        said.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        written
    };
    match says {
        Says::Once(bytes) => {
            say(&bytes).await;
            // The other side may have said more than was read: no reset before it has taken all.
            let _ = stream.shutdown().await;
            let _ = stream.read_u8().await;
        }
        Says::AndStalls(bytes) => {
            say(&bytes).await;
            let _ = stream.read_u8().await;
        }
        Says::ForEver(first, then) => {
            if say(&first).await {
                while say(&then).await {}
            }
        }
        Says::Slowly(first, then, pause) => {
            if !say(&first).await {
                return;
            }
            for byte in then {
                tokio::time::sleep(pause).await;
                if !say(&[byte]).await {
                    return;
                }
            }
        }
    }
}
