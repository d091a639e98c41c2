//! Debian's Prometheus on loopback, asked over its HTTP API.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::Value;

use super::http::get_here;
use super::process::{Daemon, eventually, with_log};

/// Nothing is slow here but a machine that compiles beside it.
const START: Duration = Duration::from_secs(30);

pub struct Prometheus {
    address: SocketAddr,
    _daemon: Daemon,
    log: PathBuf,
}

/// One sample of an instant query: its labels, and the time and value as the API writes them.
#[derive(Debug, Deserialize)]
pub struct Sample {
    #[serde(rename = "metric")]
    pub labels: BTreeMap<String, String>,
    value: (f64, String),
}

impl Sample {
    /// NaN where that is the value, as of a quantile over nothing.
    pub fn value(&self) -> f64 {
        self.value.1.parse().unwrap_or(f64::NAN)
    }
}

impl Prometheus {
    /// Runs `program` with this configuration, and returns when it answers queries. Its files are in `dir`.
    pub async fn start(program: &Path, dir: &Path, config: &Value) -> Result<Self> {
        let file = dir.join("prometheus.yml");
        std::fs::write(&file, config.to_string())?;
        let free = TcpListener::bind("127.0.0.1:0")?;
        let address = free.local_addr()?;
        drop(free);
        let mut command = Command::new(program);
        for (flag, value) in [
            ("config.file", file.display().to_string()),
            ("storage.tsdb.path", dir.join("tsdb").display().to_string()),
            ("web.listen-address", address.to_string()),
        ] {
            command.arg(format!("--{flag}={value}"));
        }
        let log = dir.join("prometheus.log");
        let mut daemon = Daemon::spawn(command, "prometheus", &log)?;
        let ready = eventually("prometheus", START, async || {
            daemon.check()?;
            let answer = get_here(address, "/-/ready").await;
            let is_ready = answer.is_ok_and(|answer| answer.status.is_success());
            Ok(is_ready.then_some(()))
        });
        with_log(ready.await, &log)?;
        Ok(Self {
            address,
            _daemon: daemon,
            log,
        })
    }

    pub fn log(&self) -> &Path {
        &self.log
    }

    /// What the API answers below `data`.
    pub async fn get(&self, path: &str) -> Result<Value> {
        let answer = get_here(self.address, path).await?.expect(200)?;
        let mut answer: Value = serde_json::from_slice(&answer.body)?;
        ensure!(answer["status"] == "success", "{path}: {answer}");
        Ok(answer["data"].take())
    }

    /// What an expression that gives a vector is now.
    pub async fn query(&self, expression: &str) -> Result<Vec<Sample>> {
        let query = form_urlencoded::Serializer::new(String::new())
            .append_pair("query", expression)
            .finish();
        let data = self.get(&format!("/api/v1/query?{query}")).await;
        let mut data = data.with_context(|| expression.to_owned())?;
        Ok(serde_json::from_value(data["result"].take())?)
    }
}
