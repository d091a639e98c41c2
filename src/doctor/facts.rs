//! What was seen, before anything is made of it.

use std::path::PathBuf;

use super::live::{Live, Silence};
use super::mounts::Mount;
use super::profile::Profile;
use crate::content::containerd::told::Cri;
use crate::hosts::{Found, Version};

/// An answer, or what went wrong in words.
pub type Answer<T> = Result<T, String>;

#[derive(Clone, Debug)]
pub struct Facts {
    pub profile: &'static Profile,
    /// None: no containerd is needed here.
    pub containerd: Option<Containerd>,
    pub hosts: Hosts,
    pub ports: Vec<Port>,
    pub bootstrap: Vec<Name>,
    /// How many cluster secrets there are. None: the swarm is open.
    pub members: Option<Answer<usize>>,
    pub live: Result<Live, Silence>,
}

#[derive(Clone, Debug)]
pub struct Containerd {
    pub socket: PathBuf,
    pub version: Answer<String>,
    /// Where the socket itself is a mount, and not the directory that it is in.
    pub socket_mount: Option<Mount>,
    pub cri: Answer<Cri>,
    pub content: Content,
}

/// The content directory, as it is seen from here.
#[derive(Clone, Debug)]
pub struct Content {
    /// Named by an option, or else by containerd.
    pub root: Answer<PathBuf>,
    /// There is no such directory. A new node's containerd makes it with its first blob (1.7 and 2.x).
    pub is_absent: bool,
    /// Why `blobs` cannot be listed.
    pub blobs: Answer<()>,
    pub ingest: Answer<()>,
    /// Of so many blobs that containerd has named so many are there.
    pub sample: Answer<Sample>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    pub named: usize,
    pub found: usize,
}

#[derive(Clone, Debug)]
pub struct Hosts {
    pub directory: PathBuf,
    pub files: Answer<Vec<Found>>,
    pub version: Option<Version>,
    /// Directories that ought to be there; empty: `_default`.
    pub wanted: Vec<String>,
    /// The node's token. None: there is none.
    pub token: Answer<Option<String>>,
    pub requires_token: bool,
    /// The value of the header that everybody must send, if anybody must.
    pub basic_auth: Answer<Option<String>>,
}

/// What is at an address that hosts.toml names.
#[derive(Clone, Debug)]
pub struct Port {
    pub url: String,
    pub answer: Answer<Served>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Served {
    /// A Peili that is ready.
    Ready,
    /// What it waits for.
    NotReady(String),
    /// It does not take the user name and the password of hosts.toml.
    Unauthorized,
    /// Somebody else.
    Other(String),
}

/// A name, URL or list by which the first peers are found.
#[derive(Clone, Debug)]
pub struct Name {
    pub name: String,
    /// How many peers it leads to, this node among them or not.
    pub leads_to: Answer<usize>,
}
