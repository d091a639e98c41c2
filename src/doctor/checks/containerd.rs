//! Whether containerd is there, asks us, and keeps what it has for others.

use std::path::Path;

use crate::doctor::facts::{Containerd, Content, Sample};
use crate::doctor::live::{Observed, Silence};
use crate::doctor::profile::{Generation, Profile};
use crate::finding::Finding;

pub fn socket(containerd: &Containerd, profile: &Profile) -> Finding {
    const CHECK: &str = "socket";
    let socket = containerd.socket.display();
    match &containerd.version {
        Ok(version) => Finding::ok(CHECK, format!("containerd {version} answers at {socket}")),
        Err(why) if containerd.socket_mount.is_some() => Finding::broken(
            CHECK,
            format!("containerd does not answer at {socket}: {why}"),
            "The socket is mounted as a file (see socket_mount), which is dead once containerd has restarted: mount its \
             directory, and restart this pod.",
        ),
        Err(why) => Finding::broken(
            CHECK,
            format!("containerd does not answer at {socket}: {why}"),
            format!(
                "See that containerd runs on the node. On {} its socket is {}: set peili.containerdSock (--containerd-sock) \
                 to it ({}), and mount the directory that it is in.",
                profile.name,
                profile.socket,
                profile.preset_file()
            ),
        ),
    }
}

/// A bind mount of a file is of the inode: containerd makes a new socket at each start, and the old one is dead.
pub fn socket_mount(containerd: &Containerd) -> Finding {
    const CHECK: &str = "socket_mount";
    let socket = containerd.socket.display();
    let directory = containerd.socket.parent().unwrap_or(Path::new("/"));
    let cure = format!(
        "Mount {} instead (hostPath of type Directory, mountPropagation HostToContainer), as the chart does, and restart \
         this pod.",
        directory.display()
    );
    match &containerd.socket_mount {
        None => Finding::ok(
            CHECK,
            format!(
                "{socket} is reached through its directory, so it outlives a restart of containerd"
            ),
        ),
        Some(mount) if mount.is_stale() => Finding::broken(
            CHECK,
            format!(
                "{socket} is mounted as a file, and containerd has restarted since: what is mounted is gone"
            ),
            cure,
        ),
        Some(_) => Finding::warning(
            CHECK,
            format!("{socket} is mounted as a file: it is dead once containerd restarts"),
            cure,
        ),
    }
}

/// Whether containerd reads the directory that we have written to: by its own word (1.6 and 1.7), else by what was seen.
pub fn config_path(
    containerd: &Containerd,
    observed: Result<&Observed, &Silence>,
    directory: &Path,
    profile: &Profile,
    generation: Generation,
) -> Finding {
    const CHECK: &str = "config_path";
    let ours = directory.display().to_string();
    let cure = || profile.config_path(&ours, generation);
    let told = containerd.cri.as_ref().ok();
    if let Some(config_path) = told.and_then(|cri| cri.config_path.as_deref()) {
        let mut parts = config_path.split(':').filter(|part| !part.is_empty());
        return if parts.any(|part| Path::new(part) == directory) {
            Finding::ok(CHECK, format!("containerd reads {ours}, by its own word"))
        } else if config_path.is_empty() {
            Finding::broken(
                CHECK,
                format!(
                    "containerd reads no directory (config_path is empty), and the mirror is in {ours}"
                ),
                cure(),
            )
        } else {
            Finding::broken(
                CHECK,
                format!("containerd reads {config_path}, and the mirror is in {ours}"),
                cure(),
            )
        };
    }
    let observed = match observed {
        Ok(observed) => observed,
        Err(silence) => {
            let why = match &containerd.cri {
                Err(why) => format!("containerd does not tell what it reads: {why}"),
                Ok(_) => "this containerd does not tell what it reads, and it is seen in what it asks for alone".into(),
            };
            return Finding::skipped(CHECK, format!("{why}; {silence}"));
        }
    };
    let Observed {
        requests,
        pulls,
        pulls_past_us,
        past_us,
        ..
    } = observed;
    let example = past_us.as_deref().unwrap_or("an image");
    match (pulls_past_us, requests) {
        (0, 0) => Finding::skipped(
            CHECK,
            "this containerd does not tell what it reads; it has pulled nothing since the daemon started, and asked for nothing",
        ),
        (0, _) => Finding::ok(
            CHECK,
            format!("containerd asks here first: {requests} requests, {pulls} pulls seen"),
        ),
        (past, 0) => Finding::broken(
            CHECK,
            format!(
                "containerd has pulled {example}, and has not asked here for anything ({past} pulls): it does not read {ours}"
            ),
            cure(),
        ),
        (past, _) => Finding::warning(
            CHECK,
            format!(
                "the last {past} pulls went past the mirror, such as {example}, though containerd has asked here before"
            ),
            format!(
                "Look for a hosts.toml of that registry beside ours in {ours}, and for `ctr` without --hosts-dir. If it \
                 holds for all registries:\n{}",
                cure()
            ),
        ),
    }
}

/// Whether layers stay after unpacking: by containerd's own word, else by images that lack theirs.
pub fn layers(
    containerd: &Containerd,
    observed: Result<&Observed, &Silence>,
    profile: &Profile,
    generation: Generation,
) -> Finding {
    const CHECK: &str = "layers";
    let cure = || profile.keep_layers(generation);
    let told = containerd.cri.as_ref().ok();
    let discards = told.and_then(|cri| cri.discard_unpacked_layers);
    let without = observed
        .as_ref()
        .map_or(0, |observed| observed.without_layers);
    match (discards, observed) {
        (Some(true), _) => Finding::broken(
            CHECK,
            "containerd throws layers away once they are unpacked (discard_unpacked_layers = true, by its own word): \
             nothing here can be given to other nodes",
            cure(),
        ),
        (Some(false), _) if without == 0 => Finding::ok(
            CHECK,
            "layers stay after unpacking, by containerd's own word",
        ),
        (None, Err(silence)) => Finding::skipped(
            CHECK,
            format!("containerd does not tell whether layers stay after unpacking; {silence}"),
        ),
        (None, Ok(observed)) if observed.images == 0 => Finding::skipped(
            CHECK,
            "containerd does not tell whether layers stay after unpacking, and there is no image here to tell it by",
        ),
        (_, Ok(observed)) if without == 0 => Finding::ok(
            CHECK,
            format!("layers are here of all {} images", observed.images),
        ),
        (told, Ok(observed)) => {
            let example = observed.without.as_deref().unwrap_or("an image");
            let seen = format!(
                "{without} of {} images are here without their layers, such as {example}: other nodes cannot get them",
                observed.images
            );
            // Some that were left from before the setting was changed are no fault of it.
            if told.is_none() && without == observed.images {
                Finding::broken(CHECK, seen, cure())
            } else {
                let cure = match told {
                    Some(_) => "Pull them again: containerd keeps layers now.".to_string(),
                    None => cure(),
                };
                Finding::warning(CHECK, seen, cure)
            }
        }
        // Without observations nothing is without layers.
        (Some(false), Err(_)) => Finding::ok(CHECK, "layers stay after unpacking"),
    }
}

/// Whether blobs and downloads can be read where containerd has them.
pub fn content(content: &Content, profile: &Profile) -> Finding {
    const CHECK: &str = "content";
    let mount = format!(
        "Mount containerd's content directory read-only where peili.containerdContentPath (--containerd-content-path) says; \
         on {} it is {} ({}). With SELinux the pod needs a type that may read it.",
        profile.name,
        profile.content,
        profile.preset_file()
    );
    let root = match &content.root {
        Ok(root) => root.display(),
        Err(why) => {
            return Finding::skipped(
                CHECK,
                format!("where containerd has its content is not known: {why}"),
            );
        }
    };
    match (&content.blobs, &content.ingest, &content.sample) {
        (_, _, Ok(Sample { named: 0, .. })) if content.is_absent => Finding::skipped(
            CHECK,
            format!("{root} is not there yet: containerd has no content"),
        ),
        // Reading through the socket costs containerd memory and time, and works.
        (Err(why), _, _) => Finding::warning(
            CHECK,
            format!(
                "blobs below {root} cannot be read ({why}): they are read through containerd's socket, and layers that \
                 containerd is still writing are not shared"
            ),
            mount,
        ),
        (Ok(()), _, Ok(Sample { named, found: 0 })) if *named > 0 => Finding::broken(
            CHECK,
            format!(
                "none of {named} blobs that containerd has is in {root}: it is another content store's"
            ),
            mount,
        ),
        (Ok(()), Err(why), _) => Finding::warning(
            CHECK,
            format!(
                "blobs below {root} can be read, and what containerd is still writing cannot ({why}): nodes that pull at \
                 once ask the registry more than once"
            ),
            mount,
        ),
        (Ok(()), Ok(()), Ok(Sample { named, found })) => Finding::ok(
            CHECK,
            format!(
                "{root} can be read, downloads included; {found} of {named} blobs that were looked for are there"
            ),
        ),
        (Ok(()), Ok(()), Err(_)) => {
            Finding::ok(CHECK, format!("{root} can be read, downloads included"))
        }
    }
}
