//! Forged tags, where nobody proves who he is.

use peili::mirror::{FetchError, Manifest};
use peili::oci::{Digest, ImageName, Key};
use peili::routing::Router as _;
use peili::testing;
use peili::testing::fetch::wanted;
use peili::testing::router::FakeSwarm;

use crate::registry::{Hostile, Says};

const FORGED: &str = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{},"layers":[]}"#;

/// What a node makes of the answers to a tag of these, who all say that they have it.
async fn asked(answers: &[&str]) -> Result<Manifest, FetchError> {
    let swarm = FakeSwarm::new();
    let router = swarm.join("192.0.2.1:5000".parse().unwrap());
    let tag = "registry.test/app:v1".parse::<ImageName>().unwrap().tag;
    let key = Key::Tag(tag.unwrap());
    let mut liars = Vec::new();
    for answer in answers {
        let liar = Hostile::saying(Says::Once(answer.as_bytes().to_vec())).await;
        let router = swarm.join(liar.address);
        router.advertise(vec![key.clone()]).await.unwrap();
        liars.push(liar);
    }
    let mirror = testing::registry::mirror(router, &prometheus::Registry::new());
    mirror.tagged_manifest(wanted(key, "manifests/v1")).await
}

fn answer(headers: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n{headers}\r\n{body}")
}

#[tokio::test]
async fn whoever_takes_part_in_an_open_swarm_can_answer_for_a_tag_and_only_with_what_he_shows() {
    let right = Digest::sha256(b"what the registry has");
    let media = "content-type: application/vnd.oci.image.manifest.v1+json\r\n";
    let lies = format!("{media}docker-content-digest: {right}\r\n");

    let forged = asked(&[&answer(&lies, FORGED)]).await.unwrap();

    // It is taken: so it is written in docs/security.md. Its digest is that of the bytes, whatever was said.
    assert_eq!(forged.bytes, FORGED);
    assert_eq!(forged.digest, Digest::sha256(FORGED.as_bytes()));
}

#[tokio::test]
async fn what_is_no_manifest_is_no_answer_to_a_tag() {
    let page = answer("content-type: text/html\r\n", "<html>sign in</html>");
    let other = answer("", r#"{"access_token":"x"}"#);
    let short = answer("", FORGED).replace("content-length: ", "content-length: 9");

    let missed = asked(&[&page, &other, &short]).await.err().unwrap();

    assert!(
        matches!(missed, FetchError::Exhausted { tried: 3, .. }),
        "{missed}"
    );
    // And the next one is asked.
    let right = answer("", FORGED);
    assert!(asked(&[&page, &other, &right]).await.is_ok());
}
