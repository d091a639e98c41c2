//! What each transfer gets of the links, for one tick.
//!
//! Max-min fairness by rounds of filling: in each round every transfer that wants more gets the smaller of its equal
//! parts of what is left of its source's uplink and of its sink's downlink. No link ever carries more than it can. After
//! [`ROUNDS`] what is not given away although somebody would want it is a few hundredths of a link at the most: one more
//! round moved no result by 1 %.

const ROUNDS: usize = 4;

/// One transfer within one tick. Bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Flow {
    pub source: u32,
    pub sink: u32,
    /// What its source has for it, and it has not yet.
    pub want: f64,
    pub got: f64,
}

/// What links can carry in one tick, and what of it is left. Bytes.
pub struct Links {
    up: Vec<f64>,
    down: Vec<f64>,
    up_left: Vec<f64>,
    down_left: Vec<f64>,
    senders: Vec<u32>,
    takers: Vec<u32>,
}

impl Links {
    pub fn new(up: Vec<f64>, down: Vec<f64>) -> Self {
        Self {
            up_left: up.clone(),
            down_left: down.clone(),
            senders: vec![0; up.len()],
            takers: vec![0; down.len()],
            up,
            down,
        }
    }

    /// Sets what each of `flows` gets.
    pub fn share(&mut self, flows: &mut [Flow]) {
        self.up_left.copy_from_slice(&self.up);
        self.down_left.copy_from_slice(&self.down);
        for flow in flows.iter_mut() {
            flow.got = 0.0;
        }
        for _ in 0..ROUNDS {
            self.senders.fill(0);
            self.takers.fill(0);
            let (up, down) = (self.up_left.clone(), self.down_left.clone());
            // Less than a byte is nothing.
            let wants = |flow: &Flow| {
                let links = up[flow.source as usize].min(down[flow.sink as usize]);
                links.min(flow.want - flow.got) > 0.5
            };
            for flow in flows.iter().filter(|flow| wants(flow)) {
                self.senders[flow.source as usize] += 1;
                self.takers[flow.sink as usize] += 1;
            }
            let parts = |left: &[f64], of: &[u32], at: u32| {
                let at = at as usize;
                left[at] / f64::from(of[at])
            };
            for flow in flows.iter_mut().filter(|flow| wants(flow)) {
                let more = parts(&up, &self.senders, flow.source)
                    .min(parts(&down, &self.takers, flow.sink))
                    .min(flow.want - flow.got);
                flow.got += more;
                self.up_left[flow.source as usize] -= more;
                self.down_left[flow.sink as usize] -= more;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(up: &[f64], down: &[f64], flows: &[(u32, u32, f64)]) -> Vec<f64> {
        let mut links = Links::new(up.to_vec(), down.to_vec());
        let mut flows: Vec<Flow> = flows
            .iter()
            .map(|&(source, sink, want)| Flow {
                source,
                sink,
                want,
                got: 0.0,
            })
            .collect();
        // What one tick used is there again in the next.
        links.share(&mut flows);
        links.share(&mut flows);
        flows.iter().map(|flow| flow.got).collect()
    }

    #[test]
    fn links_are_shared_evenly_and_what_one_cannot_use_goes_to_the_others() {
        const MUCH: f64 = 1e9;
        for (case, up, down, flows, expected) in [
            (
                "one takes the smaller link",
                vec![100.0, 100.0],
                vec![100.0, 30.0],
                vec![(0, 1, MUCH)],
                vec![30.0],
            ),
            (
                "two share an uplink",
                vec![100.0; 3],
                vec![100.0; 3],
                vec![(0, 1, MUCH), (0, 2, MUCH)],
                vec![50.0, 50.0],
            ),
            (
                "one wants little",
                vec![100.0; 3],
                vec![100.0; 3],
                vec![(0, 1, 10.0), (0, 2, MUCH)],
                vec![10.0, 90.0],
            ),
            (
                "one is slow by its own link",
                vec![100.0; 3],
                vec![100.0, 20.0, 100.0],
                vec![(0, 1, MUCH), (0, 2, MUCH)],
                vec![20.0, 80.0],
            ),
            (
                "a sink of two sources",
                vec![10.0, 100.0, 0.0],
                vec![0.0, 0.0, 60.0],
                vec![(0, 2, MUCH), (1, 2, MUCH)],
                vec![10.0, 50.0],
            ),
        ] {
            let got = shares(&up, &down, &flows);
            for (got, expected) in got.iter().zip(&expected) {
                assert!((got - expected).abs() < 0.01 * expected, "{case}: {got}");
            }
        }
    }

    #[test]
    fn no_link_carries_more_than_it_can() {
        // Everybody sends to several others, with links of all sizes.
        const NODES: u32 = 50;
        let up: Vec<f64> = (0..NODES).map(|n| f64::from(1 + n * 7 % 40)).collect();
        let down: Vec<f64> = (0..NODES).map(|n| f64::from(1 + n * 11 % 30)).collect();
        let flows: Vec<_> = (0..NODES * 4)
            .map(|f| (f % NODES, (f * 13 + f / NODES) % NODES, 5.0))
            .collect();

        let got = shares(&up, &down, &flows);

        for node in 0..NODES {
            let sum = |of: fn(&(u32, u32, f64)) -> u32| -> f64 {
                let mine = flows.iter().zip(&got).filter(|(flow, _)| of(flow) == node);
                mine.map(|(_, got)| got).sum()
            };
            assert!(sum(|flow| flow.0) <= up[node as usize] + 1e-6, "{node}");
            assert!(sum(|flow| flow.1) <= down[node as usize] + 1e-6, "{node}");
        }
    }
}
