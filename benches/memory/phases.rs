//! What goes on while the node is watched.

use std::time::Instant;

use super::*;

/// Those who have stopped reading stay so for as long as buffers may still fill.
const STILL: Duration = Duration::from_secs(3);
/// Of all layers, while everything goes on at once.
const ROUNDS: usize = 3;

impl Bench {
    /// One thing after the other; and how fast bodies leave, in bytes per second.
    pub async fn without_limit(&self) -> Result<(Vec<Row>, f64)> {
        let pid = self.start().await?;
        let idle = Duration::from_secs(self.options.idle);
        let mut rows = Vec::new();
        rows.push(self.watch(pid, "idle", async { rest(idle).await }).await?);
        rows.push(
            self.watch(pid, "told of others' content", self.told())
                .await?,
        );
        rows.push(self.watch(pid, "telling its own", self.telling()).await?);
        rows.push(self.watch(pid, "idle, with all that", rest(idle)).await?);
        rows.push(
            self.watch(pid, "64 bodies at once", self.taken(TAKERS, false))
                .await?,
        );
        let alone = self.rate().await?;
        let stopped = self.taken(TAKERS, true);
        rows.push(self.watch(pid, "64 whose takers stop", stopped).await?);
        let many = self.taken(self.options.takers, false);
        rows.push(self.watch(pid, "many bodies at once", many).await?);
        let stopped = self.taken(self.options.takers, true);
        rows.push(self.watch(pid, "many whose takers stop", stopped).await?);
        let relaying = self.relaying(&self.relayed[0]);
        rows.push(self.watch(pid, "relaying to containerd", relaying).await?);
        let growing = self.growing(&self.growing[0]);
        rows.push(self.watch(pid, "following and leading", growing).await?);
        rows.push(self.watch(pid, "idle, after all that", rest(idle)).await?);
        Ok((rows, alone))
    }

    /// Bytes per second of 64 cold bodies at once: the median of a few times.
    async fn rate(&self) -> Result<f64> {
        /// Of each the disk's mood is different.
        const TIMES: usize = 5;
        let mut rates = Vec::with_capacity(TIMES);
        for _ in 0..TIMES {
            let begun = Instant::now();
            self.taken(TAKERS, false).await?;
            rates.push(self.taken.pulled_bytes() as f64 / begun.elapsed().as_secs_f64());
        }
        rates.sort_by(f64::total_cmp);
        Ok(rates[TIMES / 2])
    }

    /// Everything at once, in no more than `limit` bytes. Without one bodies left at `alone` bytes per second, if that is known.
    pub async fn within(&self, limit: u64, alone: Option<f64>) -> Result<()> {
        self.cgroup.limit(limit, FOR_SOCKETS)?;
        let pid = self.start().await?;
        let begin = async {
            self.told().await?;
            self.telling().await
        };
        let before = self.watch(pid, "told and telling", begin).await?;
        let bodies = self.rate().await?;
        let pressed = self.cgroup.pressed()?.0;
        let all = async {
            let taken = async {
                for _ in 0..ROUNDS {
                    self.taken(TAKERS, true).await?;
                    self.taken(TAKERS, false).await?;
                }
                Ok(())
            };
            let relaying = self.relaying(&self.relayed[1]);
            let growing = self.growing(&self.growing[1]);
            futures::try_join!(taken, relaying, growing).map(drop)
        };
        let all = self.watch(pid, "all of it at once", all).await?;

        let (times, killed) = self.cgroup.pressed()?;
        ensure!(killed == 0, "{killed} processes were killed at the limit");
        ensure!(
            self.node.peili().pid() == Some(pid),
            "it is another process"
        );
        ensure!(self.node.http_get("/readyz").await?.status.is_success());
        let read = 2 * ROUNDS as u64 * self.taken.pulled_bytes();
        ensure!(
            times > pressed,
            "{read} bytes of files went out and the limit was not met"
        );
        println!("\nWithin {} MiB:\n", limit / MIB);
        print(&[before, all]);
        let beside = alone.map_or(String::new(), |alone| {
            let (megabytes, part) = (alone / 1e6, bodies / alone);
            format!(", without the limit at {megabytes:.0}: {part:.2} of it")
        });
        println!(
            "\n64 cold bodies at once leave at {:.0} MB/s{beside}.",
            bodies / 1e6
        );
        println!(
            "\n{} MiB of files were sent; the limit was met {} times, {} by sockets, and nobody was killed.",
            read / MIB,
            times - pressed,
            self.cgroup.sockets_pressed()?,
        );
        Ok(())
    }

    async fn watch(
        &self,
        pid: u32,
        phase: &'static str,
        work: impl Future<Output = Result<()>>,
    ) -> Result<Row> {
        let (row, ()) = watch(phase, &self.cgroup, pid, work).await.context(phase)?;
        Ok(row)
    }

    async fn start(&self) -> Result<u32> {
        let uploads = self.options.takers.max(TAKERS).to_string();
        let options = PeiliOptions::default().arg("--max-uploads", &uploads);
        self.node.start_peili_with(&options).await?;
        self.node.peili().pid().context("a pid")
    }

    /// Many peers tell it what they hold. They are gone before it is asked for any of that.
    async fn told(&self) -> Result<()> {
        // Alone in the DHT, or they would tell the others, too.
        for other in &self.others {
            other.stop_peili().await?;
        }
        let from = &self.others[1];
        let Options { peers, records, .. } = self.options;
        let to = SocketAddr::from((self.node.ip(), ROUTER));
        let namespace = from.netns().file();
        records::tell(namespace, from.ip(), to, peers, records / peers).await
    }

    /// It tells two others what it holds.
    async fn telling(&self) -> Result<()> {
        let before = self.announced().await?;
        try_join_all(self.others.iter().map(Node::start_peili)).await?;
        let keys = self.options.keys as f64;
        let mut told = 0.0;
        let all = eventually("its announcements", PATIENCE, async || {
            told = self.announced().await? - before;
            Ok((told >= keys).then_some(()))
        });
        let all = all.await;
        all.with_context(|| format!("{told} of {keys}"))
    }

    async fn announced(&self) -> Result<f64> {
        let metric = "peili_announcements_total";
        self.node.metric(metric, &[("result", "ok")]).await
    }

    /// So many bodies leave the node at once, from its disk. If `they_stop` their takers stop in the middle, then go on.
    async fn taken(&self, takers: usize, they_stop: bool) -> Result<()> {
        self.forget(&self.taken)?;
        let from = self.node.peili().registry();
        let mut takers = Takers::begin(&self.others[1], from, &self.taken, takers).await?;
        if they_stop {
            takers.read(UNTIL).await?;
            tokio::time::sleep(STILL).await;
        }
        takers.finish().await
    }

    /// What the node has of an image is on its disk alone.
    fn forget(&self, image: &Image) -> Result<()> {
        for layer in &image.layers {
            let blob = format!("blobs/{}", layer.digest.replace(':', "/"));
            let file = File::open(self.node.containerd().content().join(blob))?;
            fadvise(&file, 0, None, Advice::DontNeed)?;
        }
        Ok(())
    }

    /// Its containerd pulls what another node holds.
    async fn relaying(&self, image: &Image) -> Result<()> {
        let before = self.got("peer").await?;
        self.node.cri_pull(&image.reference()).await?;
        let got = self.got("peer").await? - before;
        let all = image.pulled_bytes();
        ensure!(
            got >= all as f64 / 2.0,
            "{got} of {all} bytes came from peers"
        );
        Ok(())
    }

    /// It and others pull at once what none of them has.
    async fn growing(&self, image: &Image) -> Result<()> {
        let metric = async |name| self.node.metric(name, &[]).await;
        let before = metric("peili_relayed_bytes_total").await? + self.got("in_flight").await?;
        self.lab.shape_registry(Some(REGISTRY), Direction::Up)?;
        let nodes = self.others.iter().chain([&self.node]);
        let reference = image.reference();
        try_join_all(nodes.map(|node| node.cri_pull(&reference))).await?;
        self.lab.shape_registry(None, Direction::Up)?;
        let after = metric("peili_relayed_bytes_total").await? + self.got("in_flight").await?;
        ensure!(after > before, "nothing was followed");
        Ok(())
    }

    /// Bytes that its containerd has got from `source`.
    async fn got(&self, source: &str) -> Result<f64> {
        let metric = "peili_mirror_bytes_total";
        self.node.metric(metric, &[("source", source)]).await
    }
}

async fn rest(time: Duration) -> Result<()> {
    tokio::time::sleep(time).await;
    Ok(())
}
