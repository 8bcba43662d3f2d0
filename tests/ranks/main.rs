//! Several real processes that train one model over loopback: the same bits as one process, what they agree on before they begin,
//! every way in which one of them can fail, and what more of them would bring.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../common/mod.rs"]
mod common;
mod equality;
mod failures;
mod handshake;
mod scaling;

use common::{metrics, ran, task_rows, weights_sha256, Lab, Ran};
use serde_json::{json, Value};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const ENDLESS: &str = "train.max_steps=1000000";

fn launch(lab: &Lab, ranks: usize, args: &[&str]) -> Ran {
    lab.run(&[&["launch", "--nproc", &ranks.to_string()], args].concat())
}

fn launched(lab: &Lab, ranks: usize, args: &[&str]) {
    let ran = launch(lab, ranks, args);
    assert_eq!(ran.code, 0, "{ranks} ranks: {}\n{}", ran.stderr, logs(lab));
}

/// What the ranks but the first wrote.
fn logs(lab: &Lab) -> String {
    let files = glob::glob(&format!("{}/runs/ranks/*/*.log", lab.path("").display())).unwrap();
    files
        .map(|f| {
            let f = f.unwrap();
            format!("{}: {}", f.display(), std::fs::read_to_string(&f).unwrap())
        })
        .collect()
}

fn wait_until(what: &str, mut there: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !there() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn signal(pid: u32, name: &str) {
    assert!(Command::new("kill").args([name, &pid.to_string()]).status().unwrap().success());
}

/// A launcher at work, with the processes of its ranks.
struct Job {
    launcher: Child,
    ranks: Vec<u32>,
}

impl Job {
    /// Trains without an end, and is past its first steps.
    fn start(lab: &Lab, ranks: usize, args: &[&str]) -> Self {
        let count = ranks.to_string();
        let all = [&["launch", "--nproc", &count, "pretrain", "c.json", "--quiet"], args].concat();
        let run = args.iter().find_map(|a| a.strip_prefix("run.dir=")).unwrap_or("run");
        let metrics = lab.path(&format!("{run}/metrics.jsonl"));
        let length = || std::fs::metadata(&metrics).map_or(0, |m| m.len());
        // Of a run that goes on there are some already.
        let before = length();
        let launcher = lab.command(&all).stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut job = Self { launcher, ranks: Vec::new() };
        wait_until("the ranks did not train", || {
            assert!(job.launcher.try_wait().unwrap().is_none(), "ended early: {}", logs(lab));
            length() > before + 1000
        });
        job.ranks = (0..ranks).map(|rank| job.pid_of(rank)).collect();
        job
    }

    fn pid_of(&self, rank: usize) -> u32 {
        let id = self.launcher.id();
        let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
        let is_rank = |pid: &u32| {
            let environment = std::fs::read_to_string(format!("/proc/{pid}/environ")).unwrap();
            environment.split('\0').any(|v| v == format!("RANK={rank}"))
        };
        children.split_whitespace().map(|pid| pid.parse().unwrap()).find(is_rank).unwrap()
    }

    /// Waits for the end, and that no rank is left.
    fn end(self) -> Ran {
        let ran = ran(self.launcher.wait_with_output().unwrap());
        wait_until("a rank is left", || self.ranks.iter().all(|pid| is_gone(*pid)));
        ran
    }
}

fn is_gone(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "))
}

fn steps(run: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(run.join("checkpoints")).into_iter().flatten().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Variables of a rank's environment, and its arguments.
type RankCommand<'a> = (&'a [(&'a str, &'a str)], &'a [&'a str]);

/// Ranks started by hand, each with its variables; all have ended.
fn by_hand(lab: &Lab, ranks: &[RankCommand]) -> Vec<Ran> {
    let children: Vec<Child> = ranks.iter().map(|(variables, args)| start(lab, variables, args)).collect();
    children.into_iter().map(|child| ran(child.wait_with_output().unwrap())).collect()
}

/// One rank.
fn start(lab: &Lab, variables: &[(&str, &str)], args: &[&str]) -> Child {
    let mut command = lab.command(&[&["pretrain", "c.json", "--quiet"], args].concat());
    command.envs(variables.iter().copied()).stderr(Stdio::piped()).stdout(Stdio::piped());
    command.spawn().unwrap()
}

fn free_port() -> String {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string()
}

fn torchrun<'a>(rank: &'a str, size: &'a str, port: &'a str) -> Vec<(&'a str, &'a str)> {
    vec![("RANK", rank), ("WORLD_SIZE", size), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", port)]
}
