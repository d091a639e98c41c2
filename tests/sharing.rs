//! The main job on real containerds: what one node holds, the others get from it.

#[allow(dead_code, reason = "each test uses its part of the lab")]
mod lab;

use std::time::{Duration, Instant};

use futures::future::{join_all, try_join_all};
use lab::process::eventually;
use lab::{Direction, Image, ImageSpec, Lab, Node, NodeOptions, PeiliOptions, lab_or_skip};
use peili::oci::Digest;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// What users wait for: another node finds what is new within this time, and no longer finds what is gone. It takes a
/// fifth of that on an idle machine.
const SOON: Duration = Duration::from_secs(2);
/// Anything that merely has to happen.
const AT_ALL: Duration = Duration::from_secs(30);
const MIB: u64 = 1 << 20;

async fn nodes(lab: &Lab, count: usize) -> Vec<Node> {
    let nodes = (0..count).map(|_| lab.node(NodeOptions::default()));
    let nodes = try_join_all(nodes).await.unwrap();
    let started = nodes.iter().map(Node::start_peili);
    try_join_all(started).await.unwrap();
    nodes
}

/// `/v2/app/manifests/v1?ns=…`
fn manifest_path(image: &Image, reference: &str) -> String {
    let registry = image.reference();
    let registry = registry.split('/').next().unwrap();
    let registry = registry.replace(':', "%3A");
    format!("/v2/{}/manifests/{reference}?ns={registry}", image.name())
}

fn blob_path(image: &Image, digest: &str) -> String {
    manifest_path(image, digest).replace("/manifests/", "/blobs/")
}

/// Waits until `node` gets this answer; how long that took.
async fn answered(node: &Node, path: &str, status: u16, limit: Duration) -> Duration {
    let begun = Instant::now();
    eventually(&format!("{status} for {path}"), limit, async || {
        let answer = node.http_get(path).await?;
        Ok((answer.status.as_u16() == status).then_some(()))
    })
    .await
    .unwrap();
    begun.elapsed()
}

async fn from_peers(node: &Node) -> u64 {
    let bytes = node.metric("peili_registry_bytes_saved_total", &[]);
    bytes.await.unwrap() as u64
}

async fn uploaded(node: &Node) -> u64 {
    node.metric("peili_upload_bytes_total", &[]).await.unwrap() as u64
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_registry_off_every_byte_comes_from_a_peer() {
    let lab = lab_or_skip!();
    let mut layers = vec![MIB; 11];
    layers.insert(5, 300 * MIB);
    let spec = ImageSpec::new("test/big:v1").index().layers(layers);
    let image = lab.push(spec).await.unwrap();
    let nodes = nodes(&lab, 4).await;
    nodes[0].cri_pull(&image.reference()).await.unwrap();
    let before = lab.registry.served().await.unwrap();
    assert_eq!(before.bytes(), image.pulled_bytes(), "the first pull");
    lab.stop_registry().await.unwrap();
    answered(&nodes[1], &manifest_path(&image, "v1"), 200, AT_ALL).await;
    let base = from_peers(&nodes[1]).await;

    let (tag, digest) = (image.reference(), image.reference_by_digest());
    let (by_tag, by_digest, by_ctr) = tokio::join!(
        nodes[1].cri_pull(&tag),
        nodes[2].cri_pull(&digest),
        nodes[3].ctr_pull(&tag),
    );

    by_tag.unwrap();
    by_digest.unwrap();
    by_ctr.unwrap();
    for (node, base) in nodes[1..].iter().zip([base, 0, 0]) {
        let name = node.name();
        assert_eq!(
            from_peers(node).await - base,
            image.pulled_bytes(),
            "{name}"
        );
        assert!(
            image.pulled().all(|blob| node.holds(&blob.digest)),
            "{name}"
        );
    }
    assert_eq!(lab.registry.served().await.unwrap().bytes(), before.bytes());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_and_goes_is_known_to_another_node_soon() {
    let lab = lab_or_skip!();
    let nodes = nodes(&lab, 2).await;
    let (holder, asker) = (&nodes[0], &nodes[1]);
    let advertised = async || {
        let keys = holder.metric("peili_advertised_keys", &[]).await?;
        anyhow::Ok(keys as u64)
    };
    let at_first = advertised().await.unwrap();
    let image = lab
        .make(ImageSpec::new("test/app:v1").layers([MIB]))
        .await
        .unwrap();
    let (v1, v2) = (manifest_path(&image, "v1"), manifest_path(&image, "v2"));
    let layer = blob_path(&image, &image.layers[0].digest);
    assert_eq!(asker.http_get(&v1).await.unwrap().status, 404);

    // What another containerd namespace holds is not Kubernetes' to share.
    let foreign = lab
        .make(ImageSpec::new("test/foreign:v1").seed(9).layers([MIB]))
        .await
        .unwrap();
    let archive = holder.dir().join("foreign.tar");
    foreign.write_archive(&archive).unwrap();
    let archive = archive.display().to_string();
    holder
        .ctr(&["--namespace", "other", "images", "import", &archive])
        .await
        .unwrap();
    assert!(holder.holds(&foreign.manifest.digest));

    // An import has none of the labels by which a pull's origin is known.
    holder.import(&image).await.unwrap();
    answered(asker, &v1, 200, SOON).await;
    answered(asker, &layer, 200, SOON).await;
    for foreign in [
        manifest_path(&foreign, "v1"),
        blob_path(&foreign, &foreign.layers[0].digest),
    ] {
        assert_eq!(asker.http_get(&foreign).await.unwrap().status, 404);
    }

    let second = image.reference().replace(":v1", ":v2");
    holder.ctr_tag(&image.reference(), &second).await.unwrap();
    answered(asker, &v2, 200, SOON).await;

    holder.ctr_remove(&image.reference()).await.unwrap();
    answered(asker, &v1, 404, SOON).await;
    assert_eq!(asker.http_get(&v2).await.unwrap().status, 200);
    assert_eq!(asker.http_get(&layer).await.unwrap().status, 200);

    // A node without a name for it in any registry: no key, and no harm.
    holder.ctr_tag(&second, "myorg/app:v1").await.unwrap();
    holder.ctr_remove("myorg/app:v1").await.unwrap();

    holder.cri_remove(&second).await.unwrap();
    answered(asker, &v2, 404, SOON).await;
    eventually("the garbage collection", AT_ALL, async || {
        Ok((!holder.holds(&image.layers[0].digest)).then_some(()))
    })
    .await
    .unwrap();
    answered(asker, &layer, 404, SOON).await;
    eventually("the end of the renewals", SOON, async || {
        Ok((advertised().await? == at_first).then_some(()))
    })
    .await
    .unwrap();
}

/// The head of the answer to a peer that takes what grows, and the connection behind it.
async fn growing(node: &Node, path: &str) -> (String, TcpStream) {
    let registry = node.peili().registry();
    let mut stream = node.netns().connect(registry).await.unwrap();
    let request = format!(
        "GET {path} HTTP/1.1\r\nhost: {registry}\r\nconnection: close\r\n\
         x-spegel-mirrored: true\r\nx-peili-growing: 1000\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    (String::from_utf8(head).unwrap(), stream)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_gets_a_layer_while_containerd_is_writing_it() {
    let lab = lab_or_skip!();
    // Some two seconds for the layer.
    lab.shape_registry(Some(20 * MIB), Direction::Up).unwrap();
    for (seed, options) in [
        (1, PeiliOptions::default()),
        (2, PeiliOptions::default().in_a_pod()),
    ] {
        let node = lab.node(NodeOptions::default()).await.unwrap();
        // What a pod mounts must be there: 1.7 and 2.x make their content directory with the first blob.
        let first = ImageSpec::new("test/first:v1").layers([1000]);
        node.import(&lab.make(first).await.unwrap()).await.unwrap();
        node.start_peili_with(&options).await.unwrap();
        let spec = ImageSpec::new(&format!("test/growing:v{seed}")).seed(seed);
        let image = lab.push(spec.layers([40 * MIB])).await.unwrap();
        let layer = &image.layers[0];
        let reference = image.reference();

        let (pulled, ()) = tokio::join!(node.cri_pull(&reference), async {
            let path = blob_path(&image, &layer.digest);
            let (head, mut stream) = eventually("the layer's beginning", AT_ALL, async || {
                let (head, stream) = growing(&node, &path).await;
                let has_begun = head.starts_with("HTTP/1.1 200 ");
                Ok(has_begun.then_some((head, stream)))
            })
            .await
            .unwrap();
            assert!(!node.holds(&layer.digest), "it is not whole when it begins");
            let length = format!("content-length: {}\r\n", layer.size);
            assert!(head.contains(&length), "{head}");
            let begun = Instant::now();
            let mut body = Vec::new();
            stream.read_to_end(&mut body).await.unwrap();
            let took = begun.elapsed();
            assert_eq!(Digest::sha256(&body).as_str(), layer.digest);
            // A layer that was whole would be here in a tenth of that.
            assert!(took > Duration::from_secs(1), "as it was written: {took:?}");
        });

        pulled.unwrap();
        assert!(node.holds(&layer.digest));
        let served = lab.registry.served().await.unwrap();
        assert_eq!(served.bytes_of(&layer.digest), layer.size, "once");
        let relayed = node.metric("peili_relayed_bytes_total", &[]).await.unwrap();
        assert_eq!(relayed as u64, layer.size);
    }
}

/// An image with one layer of 300 MiB on some nodes, whose links are slow enough that something can happen meanwhile.
async fn big_image_on(lab: &Lab, holders: &[Node]) -> Image {
    let spec = ImageSpec::new("test/big:v1").layers([300 * MIB]);
    let image = lab.push(spec).await.unwrap();
    for holder in holders {
        holder.import(&image).await.unwrap();
        holder.shape(Some(60 * MIB), Direction::Up).unwrap();
    }
    image
}

/// The first of `holders` that has uploaded so much.
async fn busy(holders: &[Node], bytes: u64) -> &Node {
    eventually("an upload", AT_ALL, async || {
        let uploaded = join_all(holders.iter().map(uploaded)).await;
        let mut busy = holders.iter().zip(uploaded);
        Ok(busy
            .find(|(_, uploaded)| *uploaded > bytes)
            .map(|(holder, _)| holder))
    })
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_killed_in_mid_body_is_replaced_at_the_offset() {
    let lab = lab_or_skip!();
    let mut nodes = nodes(&lab, 3).await;
    let puller = nodes.pop().unwrap();
    let image = big_image_on(&lab, &nodes).await;
    lab.stop_registry().await.unwrap();
    answered(&puller, &manifest_path(&image, "v1"), 200, AT_ALL).await;
    // Both must be known, or there is nobody to go on with.
    let layer = &image.layers[0];
    for holder in &nodes {
        eventually("the holder's announcements", AT_ALL, async || {
            let told = holder.metric("peili_announcements_total", &[("result", "ok")]);
            let keys = holder.metric("peili_advertised_keys", &[]);
            let (told, keys) = (told.await?, keys.await?);
            Ok((keys > 3.0 && told >= keys).then_some(()))
        })
        .await
        .unwrap();
    }

    let reference = image.reference();
    let (pulled, killed) = tokio::join!(puller.cri_pull(&reference), async {
        let busy = busy(&nodes, 60 * MIB).await;
        busy.kill_peili();
        busy.name().to_owned()
    });

    pulled.unwrap();
    assert!(puller.holds(&layer.digest));
    assert_eq!(lab.registry.served().await.unwrap().bytes(), 0);
    let survivor = nodes.iter().find(|node| node.name() != killed).unwrap();
    let resumed = puller
        .metric("peili_bodies_resumed_total", &[])
        .await
        .unwrap();
    assert_eq!(resumed, 1.0, "containerd saw one body");
    let rest = uploaded(survivor).await;
    // How late the first one was counted and killed depends on the machine; that there were 60 MiB by then does not.
    let expected = 100 * MIB..245 * MIB;
    assert!(expected.contains(&rest), "{rest} bytes from the survivor");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_all_peers_gone_in_mid_body_the_registry_delivers_the_rest() {
    let lab = lab_or_skip!();
    let mut nodes = nodes(&lab, 2).await;
    let puller = nodes.pop().unwrap();
    let image = big_image_on(&lab, &nodes).await;
    answered(&puller, &manifest_path(&image, "v1"), 200, AT_ALL).await;
    let before = lab.registry.served().await.unwrap();

    let reference = image.reference();
    let (pulled, ()) = tokio::join!(puller.cri_pull(&reference), async {
        busy(&nodes, 60 * MIB).await.kill_peili();
    });

    pulled.unwrap();
    let layer = &image.layers[0];
    assert!(puller.holds(&layer.digest));
    let served = lab.registry.served().await.unwrap().since(&before);
    let rest = served.bytes_of(&layer.digest);
    let expected = 100 * MIB..245 * MIB;
    assert!(expected.contains(&rest), "{rest} bytes from the registry");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_wildcard_mirrors_a_registry_that_does_not_even_exist() {
    let lab = lab_or_skip!();
    let mut nodes = Vec::new();
    for _ in 0..2 {
        let node = lab.node(NodeOptions::default()).await.unwrap();
        let unconfigured = PeiliOptions::default().unconfigured();
        node.start_peili_with(&unconfigured).await.unwrap();
        nodes.push(node);
    }
    let (holder, puller) = (&nodes[0], &nodes[1]);
    let files = tempfile::tempdir().unwrap();
    let spec = ImageSpec::new("team/app:v1").layers([MIB, 2 * MIB]);
    let image = spec.build("registry.nowhere.test", files.path()).unwrap();
    holder.import(&image).await.unwrap();
    answered(puller, &manifest_path(&image, "v1"), 200, AT_ALL).await;
    let reference = image.reference();
    assert!(
        puller.cri_pull(&reference).await.is_err(),
        "nobody is asked yet"
    );

    let certs_d = puller.containerd().certs_d();
    let theirs = || std::fs::read(certs_d.join(lab.registry.host()).join("hosts.toml"));
    let (before, certs_d) = (theirs().unwrap(), certs_d.display().to_string());
    let target = format!("http://{}", puller.peili().registry());
    let directory = ["--containerd-registry-config-path", &certs_d];
    let configure = ["configuration", "--mirror-targets", &target];
    let configure = [&configure[..], &directory].concat();
    puller
        .peili()
        .run(puller.netns(), &configure)
        .await
        .unwrap();
    puller.cri_pull(&reference).await.unwrap();
    assert!(image.pulled().all(|blob| puller.holds(&blob.digest)));

    puller.cri_remove(&reference).await.unwrap();
    let cleanup = [&["cleanup"], &directory[..]].concat();
    puller.peili().run(puller.netns(), &cleanup).await.unwrap();
    assert!(
        puller.cri_pull(&reference).await.is_err(),
        "nobody is asked any more"
    );
    assert_eq!(theirs().unwrap(), before, "byte for byte");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_nodes_own_containerd_has_its_token() {
    let lab = lab_or_skip!();
    let nodes = nodes(&lab, 2).await;
    let (holder, puller) = (&nodes[0], &nodes[1]);
    let image = lab
        .make(ImageSpec::new("test/app:v1").layers([MIB]))
        .await
        .unwrap();
    holder.import(&image).await.unwrap();
    let v1 = manifest_path(&image, "v1");
    answered(puller, &v1, 200, AT_ALL).await;

    let certs_d = puller.containerd().certs_d();
    let hosts_toml = certs_d.join(lab.registry.host()).join("hosts.toml");
    let data_dir = puller.peili().data().display().to_string();
    let with_token = ["--data-dir", &data_dir];
    puller
        .peili()
        .configure(
            puller.netns(),
            puller.containerd(),
            &lab.registry.host(),
            &with_token,
        )
        .await
        .unwrap();

    // From now on a stranger gets nothing fetched, and containerd, which sends the token, does.
    answered(puller, &v1, 404, AT_ALL).await;
    let mode = std::fs::metadata(&hosts_toml).unwrap().permissions();
    assert_eq!(
        std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777,
        0o600
    );
    lab.stop_registry().await.unwrap();
    let base = from_peers(puller).await;
    puller.cri_pull(&image.reference()).await.unwrap();
    assert_eq!(from_peers(puller).await - base, image.pulled_bytes());
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_pods_mounts_without_a_capability_it_survives_restarts_of_containerd() {
    let lab = lab_or_skip!();
    let (node, other) = (
        lab.node(NodeOptions::default()).await.unwrap(),
        lab.node(NodeOptions::default()).await.unwrap(),
    );
    let first = lab
        .make(ImageSpec::new("test/first:v1").layers([MIB]))
        .await
        .unwrap();
    // The directories are there before the pod is.
    node.import(&first).await.unwrap();
    let in_a_pod = PeiliOptions::default().in_a_pod();
    node.start_peili_with(&in_a_pod).await.unwrap();
    other.start_peili().await.unwrap();
    answered(&other, &manifest_path(&first, "v1"), 200, AT_ALL).await;

    // The socket is another file each time.
    for (round, name) in ["test/a:v1", "test/b:v1"].into_iter().enumerate() {
        node.restart().await.unwrap();
        let spec = ImageSpec::new(name).seed(7 + round as u64).layers([MIB]);
        let image = lab.make(spec).await.unwrap();
        node.import(&image).await.unwrap();
        answered(&other, &manifest_path(&image, "v1"), 200, AT_ALL).await;
    }
    node.peili_ready().await.unwrap();

    // Blobs are read by their path: containerd need not be there.
    node.stop().await.unwrap();
    let layer = blob_path(&first, &first.layers[0].digest);
    assert_eq!(other.http_get(&layer).await.unwrap().status, 200);
    let ended = node.stop_peili().await.unwrap().unwrap();
    assert!(ended.success(), "{ended}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_ends_takes_no_unsent_bytes_with_it() {
    let lab = lab_or_skip!();
    let (node, other) = (
        lab.node(NodeOptions::default()).await.unwrap(),
        lab.node(NodeOptions::default()).await.unwrap(),
    );
    // Cut two seconds after SIGTERM.
    let soon = PeiliOptions::default().arg("--shutdown-grace-period", "7s");
    node.start_peili_with(&soon).await.unwrap();
    let image = lab
        .make(ImageSpec::new("test/big:v1").layers([300 * MIB]))
        .await
        .unwrap();
    node.import(&image).await.unwrap();
    let path = blob_path(&image, &image.layers[0].digest);
    answered(&node, &blob_path(&image, &image.config.digest), 200, AT_ALL).await;
    let mut client = other
        .netns()
        .connect(node.peili().registry())
        .await
        .unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nx-spegel-mirrored: 1\r\n\r\n");
    client.write_all(request.as_bytes()).await.unwrap();
    let mut chunk = vec![0; 1 << 18];
    let mut received = client.read(&mut chunk).await.unwrap();

    // The client takes 10 MB/s: there is always something unsent.
    let reading = tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_millis(25)).await;
            match tokio::time::timeout(AT_ALL, client.read(&mut chunk)).await {
                Ok(Ok(0)) => return Ok(received),
                Ok(Ok(more)) => received += more,
                Ok(Err(e)) => return Err(format!("{e} after {received} bytes")),
                Err(_) => return Err(format!("silence after {received} bytes")),
            }
        }
    });
    let ended = node.stop_peili().await.unwrap().unwrap();
    // As a pod's network does.
    node.remove_link().unwrap();

    assert!(ended.success(), "{ended}");
    let received = reading.await.unwrap().expect("a FIN behind the last byte");
    assert!(received < 300 << 20, "{received} bytes: it was cut");
}

#[tokio::test(flavor = "multi_thread")]
async fn containerd_may_come_late_and_go_and_come_back() {
    let lab = lab_or_skip!();
    let other = lab.node(NodeOptions::default()).await.unwrap();
    let node = lab.node(NodeOptions::default()).await.unwrap();
    other.start_peili().await.unwrap();

    node.stop().await.unwrap();
    node.spawn_peili(&PeiliOptions::default()).await.unwrap();
    let awaited = eventually("an answer that says what is awaited", AT_ALL, async || {
        let Ok(answer) = node.http_get("/readyz").await else {
            return Ok(None);
        };
        assert_eq!(answer.status, 503);
        let text = answer.text();
        Ok((text.contains("containerd.sock") && !text.contains("routing")).then_some(text))
    })
    .await
    .unwrap();
    assert!(awaited.contains("awaiting containerd: "), "{awaited}");
    node.start().await.unwrap();
    node.peili_ready().await.unwrap();

    for (round, name) in ["test/a:v1", "test/b:v1"].into_iter().enumerate() {
        node.restart().await.unwrap();
        node.peili_ready().await.unwrap();
        let spec = ImageSpec::new(name).seed(round as u64).layers([MIB]);
        let image = lab.make(spec).await.unwrap();
        node.import(&image).await.unwrap();
        answered(&other, &manifest_path(&image, "v1"), 200, SOON * 5).await;
    }
    let ended = node.stop_peili().await.unwrap().unwrap();
    assert!(ended.success(), "{ended}");
}
