//! The image and the chart together on a real containerd: the rendered pod's containers, started as a kubelet would.

use std::time::Duration;

use super::lab::cri::pods::{ContainerSpec, Mount, Pod};
use super::lab::dns::PEERS;
use super::lab::lab_or_skip;
use super::lab::process::{eventually, tail};
use super::lab::{ImageSpec, Node, NodeOptions};
use super::*;

/// Nothing here takes more than a second on an idle machine.
const SOON: Duration = Duration::from_secs(60);

/// What `make test-image` makes of this source. None, and a word, where it was not run; in CI that is a failure.
fn image() -> Option<PathBuf> {
    let target = Path::new(PEILI).ancestors().nth(2)?;
    let image = target.join("image/peili-quick.tar");
    if image.exists() {
        return Some(image);
    }
    assert!(std::env::var_os("CI").is_none(), "run `make test-image`");
    eprintln!("skipped: no image; `make test-image` makes it");
    None
}

/// A container of the rendered pod as the kubelet hands it to the CRI, with the node's address in its environment.
fn container(objects: &Objects, name: &str, node: &Node) -> ContainerSpec {
    let pod = objects.pod();
    let container = objects.container(name);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut env = objects.env(name);
    for value in env.values_mut() {
        *value = value.replace("192.0.2.7", &node.ip().to_string());
    }
    if env.contains_key("POD_IPS") {
        env.insert("POD_IPS".to_owned(), node.ip().to_string());
    }
    let volumes = pod["volumes"].as_array().expect("volumes");
    let mounts = container["volumeMounts"]
        .as_array()
        .expect("mounts")
        .iter()
        .map(|mount| {
            let volume = volumes
                .iter()
                .find(|volume| volume["name"] == mount["name"])
                .expect("its volume");
            let host_path = text(&volume["hostPath"]["path"]);
            // hostPath's DirectoryOrCreate.
            std::fs::create_dir_all(&host_path).expect("a directory");
            Mount {
                container_path: text(&mount["mountPath"]),
                host_path,
                read_only: mount["readOnly"] == true,
                propagation: i32::from(mount["mountPropagation"] == "HostToContainer"),
            }
        });
    ContainerSpec {
        name: name.to_owned(),
        image: text(&container["image"]),
        args: container["args"]
            .as_array()
            .expect("args")
            .iter()
            .map(text)
            .collect(),
        env: env.into_iter().collect(),
        mounts: mounts.collect(),
    }
}

/// Every file below a directory, by its path there.
fn files(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let (mut found, mut left) = (BTreeMap::new(), vec![root.to_path_buf()]);
    while let Some(directory) = left.pop() {
        for entry in std::fs::read_dir(&directory).expect("a directory") {
            let path = entry.expect("an entry").path();
            match path.is_dir() {
                true => left.push(path),
                false => {
                    let text = std::fs::read(&path).expect("a file");
                    found.insert(path.strip_prefix(root).expect("below").to_path_buf(), text);
                }
            }
        }
    }
    found
}

#[tokio::test]
async fn the_image_runs_as_the_charts_pod_and_containerd_pulls_through_it() {
    let (Some(tools), Some(image)) = (tools(), image()) else {
        return;
    };
    let lab = lab_or_skip!();
    let pause = ImageSpec::new("pause:1")
        .busybox()
        .command(&["/bin/sleep", "100000"]);
    lab.push(pause).await.unwrap();
    let wanted = lab
        .push(ImageSpec::new("test/wanted:v1").layers([1 << 20]))
        .await
        .unwrap();
    let node = lab.node(NodeOptions::default()).await.unwrap();
    let before = files(&node.containerd().certs_d());
    let set = |key: &str, value: &Path| format!("{key}={}", value.display());
    let data = node.dir().join("data");
    let values = [
        "service.registry.mode=hostNetwork".to_owned(),
        set("peili.containerdSock", &node.containerd().socket()),
        set(
            "peili.containerdRegistryConfigPath",
            &node.containerd().certs_d(),
        ),
        set("peili.containerdContentPath", &node.containerd().content()),
        set("peili.persistence.hostPath", &data),
        format!("clusterDomain={PEERS}"),
        format!(
            "peili.mirroredRegistries={{http://{}}}",
            lab.registry.host()
        ),
    ];
    let args: Vec<&str> = values.iter().flat_map(|value| ["--set", value]).collect();
    let objects = tools.objects(&args);

    node.ctr_import(&image).await.unwrap();
    let logs = node.dir().join("pods");
    std::fs::create_dir_all(&logs).unwrap();
    let log = |name: &str| tail(&logs.join(format!("{name}.log")), 20);
    let socket = node.containerd().socket();
    let pod = Pod::run(&socket, "peili", &logs).await.unwrap();

    let configuration = pod
        .start(&container(&objects, "configuration", &node))
        .await
        .unwrap();
    let code = eventually("the init container's end", SOON, async || {
        pod.exit_code(&configuration).await
    });
    assert_eq!(code.await.unwrap(), 0, "{}", log("configuration"));
    let configured = files(&node.containerd().certs_d());
    let address = format!("http://{}:30020", node.ip());
    let names_us = |text: &&Vec<u8>| String::from_utf8_lossy(text).contains(&address);
    assert!(
        configured.values().any(|text| names_us(&text)),
        "{:?}",
        configured.keys()
    );

    let registry = pod
        .start(&container(&objects, "registry", &node))
        .await
        .unwrap();
    let port = 30020;
    let to = (node.ip(), port).into();
    eventually("the pod's readiness", SOON, async || {
        let code = pod.exit_code(&registry).await?;
        anyhow::ensure!(
            code.is_none(),
            "it has ended with {code:?}: {}",
            log("registry")
        );
        let answer = node.http(to, hyper::Method::GET, "/readyz", &[]).await;
        Ok(answer
            .is_ok_and(|answer| answer.status.is_success())
            .then_some(()))
    })
    .await
    .unwrap_or_else(|e| panic!("{e:#}: {}", log("registry")));

    node.cri_pull(&wanted.reference()).await.unwrap();
    let metrics = node
        .http(
            (node.ip(), 9090).into(),
            hyper::Method::GET,
            "/metrics",
            &[],
        )
        .await
        .unwrap()
        .text();
    let asked = super::lab::peili::metric(&metrics, "peili_mirror_requests_total", &[]);
    // Its manifest, its config and its layer: nobody else has them, so all of them are misses.
    assert!(asked >= 3.0, "{asked}: {}", log("registry"));
    assert!(
        data.join("private.key").exists(),
        "the identity outlives the pod"
    );

    // The same image, told what the uninstall's DaemonSet is told.
    let uninstall =
        &objects.get("DaemonSet", "peili-cleanup")["spec"]["template"]["spec"]["containers"][0];
    let mut cleanup = container(&objects, "configuration", &node);
    cleanup.name = "cleanup".to_owned();
    cleanup.args = vec!["cleanup".to_owned()];
    cleanup.env = env_of(uninstall).into_iter().collect();
    pod.start(&cleanup).await.unwrap();
    eventually("the cleanup's readiness", SOON, async || {
        let answer = node
            .http((node.ip(), 8080).into(), hyper::Method::GET, "/readyz", &[])
            .await;
        Ok(answer
            .is_ok_and(|answer| answer.status.is_success())
            .then_some(()))
    })
    .await
    .unwrap_or_else(|e| panic!("{e:#}: {}", log("cleanup")));
    assert_eq!(files(&node.containerd().certs_d()), before);
    pod.remove().await.unwrap();
}
