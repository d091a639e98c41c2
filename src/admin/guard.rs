//! Who may see `/debug`, and who may make it do something.
//!
//! There is no password: whoever reaches the port by its address may look, as with `/metrics`. But a person's browser
//! reaches it, too, by `kubectl port-forward`, on behalf of whatever site is open beside it. So a name that is not this
//! node's is refused (a site that has its own name point here could read everything: DNS rebinding), and what costs
//! traffic is a POST of JSON that no other site's page can send without being asked first, which is refused.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

/// Nothing from elsewhere, nothing written into the page, and nobody's frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; \
                      form-action 'self'; base-uri 'none'; frame-ancestors 'none'";
const SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const ON_EVERY_ANSWER: [(HeaderName, &str); 6] = [
    (header::CONTENT_SECURITY_POLICY, POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (
        HeaderName::from_static("cross-origin-resource-policy"),
        "same-origin",
    ),
    (
        HeaderName::from_static("cross-origin-opener-policy"),
        "same-origin",
    ),
];

/// What this node is called, beside its addresses and `localhost`.
#[derive(Clone, Debug, Default)]
pub struct Names(Arc<Vec<String>>);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum Refused {
    #[error(
        "refused: the Host header {0:?} is not an address, localhost or this pod's name. Ask by address, such as \
         http://127.0.0.1:9090/debug/web/ behind kubectl port-forward"
    )]
    Host(String),
    #[error(
        "refused: this request comes from another site ({0}). Whatever costs traffic is done from this page alone"
    )]
    Site(String),
    #[error("refused: the content type is {0:?}, and that of a POST here is application/json")]
    Type(String),
}

impl Names {
    /// As the kernel has it, which in a pod is the pod's name.
    pub fn of_this_machine() -> Self {
        let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        Self::new([name.trim()])
    }

    pub fn new<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        let names = names.into_iter().filter(|name| !name.is_empty());
        Self(Arc::new(names.map(str::to_ascii_lowercase).collect()))
    }

    fn knows(&self, host: &str) -> bool {
        let name = match host.strip_prefix('[') {
            Some(v6) => v6.split(']').next().unwrap_or_default(),
            None => host.split(':').next().unwrap_or_default(),
        };
        let name = name.to_ascii_lowercase();
        name == "localhost" || name.parse::<IpAddr>().is_ok() || self.0.contains(&name)
    }
}

pub(super) async fn guard(State(names): State<Names>, request: Request, next: Next) -> Response {
    let mut response = match judge(request.method(), request.headers(), &names) {
        Ok(()) => next.run(request).await,
        Err(refused) => {
            let status = match refused {
                Refused::Type(_) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
                Refused::Host(_) | Refused::Site(_) => StatusCode::FORBIDDEN,
            };
            (status, format!("{refused}\n")).into_response()
        }
    };
    let headers = response.headers_mut();
    for (name, value) in ON_EVERY_ANSWER {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers
        .entry(header::CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
    response
}

fn judge(method: &Method, headers: &HeaderMap, names: &Names) -> Result<(), Refused> {
    let text = |name: &HeaderName| {
        let value = headers.get(name)?;
        Some(String::from_utf8_lossy(value.as_bytes()).into_owned())
    };
    let quoted = |text: String| text.chars().take(100).collect::<String>();
    let host = text(&header::HOST).unwrap_or_default();
    if !names.knows(&host) {
        return Err(Refused::Host(quoted(host)));
    }
    if matches!(*method, Method::GET | Method::HEAD) {
        return Ok(());
    }
    if let Some(site) = text(&SITE)
        && site != "same-origin"
        && site != "none"
    {
        return Err(Refused::Site(quoted(site)));
    }
    if let Some(origin) = text(&header::ORIGIN)
        && origin.strip_prefix("http://") != Some(host.as_str())
        && origin.strip_prefix("https://") != Some(host.as_str())
    {
        return Err(Refused::Site(quoted(origin)));
    }
    let kind = text(&header::CONTENT_TYPE).unwrap_or_default();
    match kind.split(';').next().map(str::trim) {
        Some(kind) if kind.eq_ignore_ascii_case("application/json") => Ok(()),
        _ => Err(Refused::Type(quoted(kind))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(method: Method, headers: &[(&str, &str)]) -> Result<(), Refused> {
        let headers = headers.iter().map(|(name, value)| {
            let name: HeaderName = name.parse().unwrap();
            (name, HeaderValue::from_str(value).unwrap())
        });
        judge(&method, &headers.collect(), &Names::new(["Peili-x7k2"]))
    }

    #[test]
    fn only_names_of_this_node_are_answered() {
        for (host, is_ours) in [
            ("127.0.0.1:9090", true),
            ("10.1.2.3", true),
            ("[::1]:9090", true),
            ("[fd00::7]", true),
            ("localhost:9090", true),
            ("LOCALHOST", true),
            ("peili-x7k2:9090", true),
            ("peili-x7k2.evil.example", false),
            ("127.0.0.1.evil.example", false),
            ("localhost.evil.example:9090", false),
            ("evil.example", false),
            ("[::1.evil", false),
            ("", false),
        ] {
            let judged = judged(Method::GET, &[("host", host)]);
            assert_eq!(judged.is_ok(), is_ours, "{host}");
        }
        assert!(judged(Method::GET, &[]).is_err(), "without a name");
    }

    #[test]
    fn what_costs_traffic_is_asked_by_this_page_or_by_no_browser() {
        let host = ("host", "localhost:9090");
        let json = ("content-type", "application/json");
        for (name, headers, is_allowed) in [
            ("curl", vec![json], true),
            (
                "with a character set",
                vec![("content-type", "Application/JSON; charset=utf-8")],
                true,
            ),
            (
                "the page",
                vec![
                    json,
                    ("origin", "http://localhost:9090"),
                    ("sec-fetch-site", "same-origin"),
                ],
                true,
            ),
            ("a form", vec![("content-type", "text/plain")], false),
            ("without a type", vec![], false),
            (
                "another site",
                vec![json, ("sec-fetch-site", "cross-site")],
                false,
            ),
            (
                "a neighbour",
                vec![json, ("sec-fetch-site", "same-site")],
                false,
            ),
            (
                "another origin",
                vec![json, ("origin", "http://evil.example")],
                false,
            ),
            (
                "another port",
                vec![json, ("origin", "http://localhost:8080")],
                false,
            ),
            ("a file", vec![json, ("origin", "null")], false),
        ] {
            let headers: Vec<_> = std::iter::once(host).chain(headers).collect();
            assert_eq!(judged(Method::POST, &headers).is_ok(), is_allowed, "{name}");
            assert!(
                judged(Method::GET, &headers).is_ok(),
                "{name}: looking is free"
            );
        }
    }
}
