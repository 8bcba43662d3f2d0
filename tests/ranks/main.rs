//! Several real processes that train one model over loopback: the same bits as one process, the launchers' environments, and
//! every way in which one of them can fail.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

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
        let launcher = lab.command(&all).stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut job = Self { launcher, ranks: Vec::new() };
        let run = args.iter().find_map(|a| a.strip_prefix("run.dir=")).unwrap_or("run");
        let metrics = lab.path(&format!("{run}/metrics.jsonl"));
        wait_until("the ranks did not train", || {
            assert!(job.launcher.try_wait().unwrap().is_none(), "ended early: {}", logs(lab));
            std::fs::metadata(&metrics).map_or(0, |m| m.len()) > 1000
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

/// Cases 24 and 46: with dropout, masks and a validation part of 16 sequences, which 3 does not divide.
#[test]
fn ranks_give_the_bits_of_one_process_that_accumulates_as_often() {
    let lab = Lab::new();
    lab.config(
        "c.json",
        &[("model.hidden_dropout_prob", json!(0.1)), ("train.max_steps", json!(7)), ("run.ranks.compare_every", json!(2))],
    );
    for ranks in [2, 3, 4] {
        let (one, many) = (format!("run.dir=one{ranks}"), format!("run.dir=many{ranks}"));
        lab.ok(&["pretrain", "c.json", &one, &format!("train.micro_batch_size={}", 8usize.div_ceil(ranks)), "--quiet"]);
        launched(&lab, ranks, &["pretrain", "c.json", &many, "--quiet"]);
        let [one, many] = [format!("one{ranks}"), format!("many{ranks}")].map(|run| lab.path(&run));
        assert_eq!(weights_sha256(&one, 7), weights_sha256(&many, 7), "{ranks} ranks");
        assert_eq!(metrics(&one), metrics(&many));
        assert_eq!(common::series(&one), common::series(&many));
    }
}

/// Micro-batches within the ranks, gradients in many small buckets: the sums are nested otherwise.
#[test]
fn accumulation_within_ranks_is_within_rounding() {
    let lab = Lab::new();
    lab.config("c.json", &[("model.hidden_dropout_prob", json!(0.1)), ("train.micro_batch_size", json!(1)), ("train.log_every", json!(1))]);
    lab.ok(&["pretrain", "c.json", "run.dir=one", "--quiet"]);
    launched(&lab, 2, &["pretrain", "c.json", "run.dir=two", "run.ranks.bucket_mib=0.002", "--quiet"]);
    let [one, two] = ["one", "two"].map(|run| {
        let file = lab.path(&format!("{run}/checkpoints/step-00000006/model.safetensors"));
        let mut tensors = tch::Tensor::read_safetensors(file).unwrap();
        tensors.sort_by(|a, b| a.0.cmp(&b.0));
        tensors
    });
    for ((name, a), (_, b)) in one.iter().zip(&two) {
        let difference = (a - b).abs().max().double_value(&[]);
        assert!(difference < 1e-6, "{name}: {difference}");
    }
}

/// Case 46: 13 rows for 3 ranks; an epoch's last batch of 2 rows leaves a rank without any.
#[test]
fn fine_tuning_among_ranks_scores_every_row_once() {
    let lab = Lab::new();
    lab.write("train.tsv", task_rows(34));
    lab.write("dev.tsv", task_rows(13));
    let config = json!({"model": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "attention": {"k": 4}},
        "data": {"task": {"name": "mine", "train": "train.tsv", "dev": "dev.tsv", "text": "text", "label": "label", "labels": ["0", "1"]},
                 "tokenizer": "bytes", "sequence_length": 24},
        "train": {"max_epochs": 2, "batch_size": 8, "warmup_steps": 2, "log_every": 1, "eval_every": 3, "keep_checkpoints": 9}});
    lab.write("c.json", config.to_string());
    lab.ok(&["finetune", "c.json", "run.dir=one", "train.micro_batch_size=3", "--quiet"]);
    launched(&lab, 3, &["finetune", "c.json", "run.dir=three", "--quiet"]);
    let [one, three] = ["one", "three"].map(|run| lab.path(run));
    assert_eq!(metrics(&one), metrics(&three));
    assert_eq!(weights_sha256(&one, 10), weights_sha256(&three, 10));
}

/// Case 36: the order of data is a function of (seed, epoch); with the same number of ranks the bits are the same as well.
#[test]
fn a_run_goes_on_with_another_number_of_ranks() {
    let lab = Lab::new();
    lab.config("c.json", &[("train.max_steps", json!(12)), ("train.schedule", json!("constant")), ("train.log_every", json!(1))]);
    launched(&lab, 2, &["pretrain", "c.json", "run.dir=whole", "--quiet"]);
    for (dir, ranks) in [("same", 2), ("more", 4), ("alone", 1)] {
        let dir_key = format!("run.dir={dir}");
        launched(&lab, 2, &["pretrain", "c.json", &dir_key, "train.max_steps=6", "--quiet"]);
        launched(&lab, ranks, &["pretrain", "c.json", &dir_key, "--resume", "auto", "--quiet"]);
        if ranks == 2 {
            assert_eq!(weights_sha256(&lab.path("whole"), 12), weights_sha256(&lab.path(dir), 12));
        }
        let losses = |run: &str| {
            let train = metrics(&lab.path(run)).into_iter().filter(|m| m["split"] == "train");
            train.map(|m| (m["step"].as_u64().unwrap(), m["loss"].as_f64().unwrap())).collect::<Vec<_>>()
        };
        let (whole, cut) = (losses("whole"), losses(dir));
        assert_eq!(whole.len(), cut.len());
        assert!(whole.iter().zip(&cut).all(|(a, b)| a.0 == b.0 && (a.1 - b.1).abs() < 1e-5), "{whole:?} {cut:?}");
    }
}

/// Case 38 and 49: a signal to one rank stops all after the same step.
#[test]
fn sigterm_to_any_one_rank_makes_all_checkpoint_and_the_resumed_run_is_the_whole_one() {
    let lab = Lab::new();
    lab.config("c.json", &[("train.schedule", json!("constant")), ("train.eval_every", json!(0)), ("train.checkpoint_every", json!(0))]);
    for victim in [1, 0] {
        let dir = format!("run.dir=cut{victim}");
        let job = Job::start(&lab, 3, &[ENDLESS, &dir]);
        signal(job.ranks[victim], "-TERM");
        let ran = job.end();
        assert_eq!(ran.code, 130, "{}\n{}", ran.stderr, logs(&lab));
        let cut = lab.path(&format!("cut{victim}"));
        let saved = steps(&cut);
        assert_eq!(saved.len(), 1, "{saved:?}");
        let stopped: u64 = saved[0].trim_start_matches("step-").parse().unwrap();
        let total = stopped + 3;
        let (max, whole) = (format!("train.max_steps={total}"), format!("run.dir=whole{victim}"));
        launched(&lab, 3, &["pretrain", "c.json", &dir, &max, "--resume", "auto", "--quiet"]);
        launched(&lab, 3, &["pretrain", "c.json", &whole, &max, "--quiet"]);
        assert_eq!(weights_sha256(&cut, total), weights_sha256(&lab.path(&format!("whole{victim}")), total));
    }
}

/// One clear line from the survivors, in bounded time, and no orphan.
#[test]
fn a_killed_rank_ends_all_and_is_named() {
    let lab = Lab::new();
    lab.config("c.json", &[("train.eval_every", json!(0)), ("train.checkpoint_every", json!(3)), ("train.schedule", json!("constant"))]);
    for victim in [0, 2] {
        let dir = format!("run.dir=k{victim}");
        let job = Job::start(&lab, 3, &[ENDLESS, &dir]);
        let pid = job.ranks[victim];
        let begun = Instant::now();
        signal(pid, "-KILL");
        let ran = job.end();
        assert!(begun.elapsed() < Duration::from_secs(40), "{:?}", begun.elapsed());
        assert_eq!(ran.code, 1, "{}", ran.stderr);
        assert!(ran.stderr.contains(&format!("rank {victim} (process {pid}) was killed by signal 9")), "{}", ran.stderr);
        let said = ran.stderr + &logs(&lab);
        let line = format!("rank {victim} (");
        let survivors = said.lines().filter(|l| l.contains(&line) && l.contains("has gone in step")).count();
        assert!(survivors >= 1, "{said}");
    }
    // What was saved is good.
    launched(&lab, 3, &["pretrain", "c.json", "run.dir=k2", "--resume", "auto", "--quiet", &goal(&lab.path("k2"))]);
}

/// A few steps after the last checkpoint.
fn goal(run: &Path) -> String {
    let last: u64 = steps(run).iter().filter_map(|name| name.strip_prefix("step-")?.parse().ok()).max().unwrap_or(0);
    format!("train.max_steps={}", last + 5)
}

#[test]
fn a_rank_that_hangs_ends_all_and_is_named() {
    let lab = Lab::new();
    lab.config("c.json", &[("train.eval_every", json!(0)), ("train.checkpoint_every", json!(0)), ("run.ranks.peer_timeout", json!(3))]);
    let job = Job::start(&lab, 2, &[ENDLESS]);
    let begun = Instant::now();
    signal(job.ranks[1], "-STOP");
    let ran = job.end();
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("rank 1 (") && ran.stderr.contains("has given no sign of life for"), "{}", ran.stderr);
}

#[test]
fn a_launcher_that_is_killed_leaves_no_orphan() {
    let lab = Lab::new();
    lab.config("c.json", &[("train.eval_every", json!(0)), ("train.checkpoint_every", json!(0))]);
    let mut job = Job::start(&lab, 2, &[ENDLESS]);
    job.launcher.kill().unwrap();
    job.launcher.wait().unwrap();
    wait_until("a rank is left", || job.ranks.iter().all(|pid| is_gone(*pid)));
}

/// Case 49: an error of one rank is told once by all.
#[test]
fn an_error_of_the_first_rank_is_the_one_that_is_told() {
    let lab = Lab::new();
    lab.config("c.json", &[]);
    launched(&lab, 2, &["pretrain", "c.json", "--quiet"]);
    let ran = launch(&lab, 2, &["pretrain", "c.json", "--quiet"]);
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("rank 0: ") && ran.stderr.contains("a run is here already"), "{}", ran.stderr);
}

/// Ranks started by hand, each with its variables; the first has ended when the others are looked at.
/// Variables of a rank's environment, and its arguments.
type RankCommand<'a> = (&'a [(&'a str, &'a str)], &'a [&'a str]);

fn by_hand(lab: &Lab, ranks: &[RankCommand]) -> Vec<Ran> {
    let start = |(variables, args): &(&[(&str, &str)], &[&str])| {
        let mut command = lab.command(&[&["pretrain", "c.json", "--quiet"], *args].concat());
        command.envs(variables.iter().copied()).stderr(Stdio::piped()).stdout(Stdio::piped());
        command.spawn().unwrap()
    };
    let children: Vec<Child> = ranks.iter().map(start).collect();
    children.into_iter().map(|child| ran(child.wait_with_output().unwrap())).collect()
}

fn free_port() -> String {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string()
}

fn torchrun<'a>(rank: &'a str, size: &'a str, port: &'a str) -> Vec<(&'a str, &'a str)> {
    vec![("RANK", rank), ("WORLD_SIZE", size), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", port)]
}

#[test]
fn the_variables_of_every_launcher() {
    let lab = Lab::new();
    lab.config("c.json", &[]);
    lab.ok(&["pretrain", "c.json", "run.dir=one", "train.micro_batch_size=4", "--quiet"]);
    let port = free_port();
    let job = std::process::id().to_string();
    let rank = |r: &'static str| {
        let open_mpi = vec![
            ("OMPI_COMM_WORLD_RANK", r),
            ("OMPI_COMM_WORLD_SIZE", "2"),
            ("OMPI_COMM_WORLD_LOCAL_RANK", r),
            ("OMPI_COMM_WORLD_LOCAL_SIZE", "2"),
            ("MASTER_PORT", &port),
        ];
        let slurm = vec![
            ("SLURM_PROCID", r),
            ("SLURM_STEP_NUM_TASKS", "2"),
            ("SLURM_LOCALID", r),
            ("SLURM_STEP_NODELIST", "localhost"),
            ("SLURM_JOB_ID", &job),
            ("SLURM_STEP_ID", "0"),
        ];
        let pmi = vec![("PMI_RANK", r), ("PMI_SIZE", "2"), ("MPI_LOCALRANKID", r), ("MPI_LOCALNRANKS", "2"), ("MASTER_PORT", &port)];
        [torchrun(r, "2", &port), open_mpi, slurm, pmi]
    };
    for (i, (first, second)) in rank("0").into_iter().zip(rank("1")).enumerate() {
        let dir = format!("run.dir=l{i}");
        let ended = by_hand(&lab, &[(&first, &[&dir]), (&second, &[&dir])]);
        assert!(ended.iter().all(|r| r.code == 0), "{} {}", ended[0].stderr, ended[1].stderr);
        assert_eq!(weights_sha256(&lab.path("one"), 6), weights_sha256(&lab.path(&format!("l{i}")), 6));
    }
}

#[test]
fn ranks_that_do_not_fit_together_are_refused_with_both_values() {
    let lab = Lab::new();
    lab.config("c.json", &[("run.ranks.join_timeout", json!(4))]);
    let both = |first: &[(&str, &str)], second: &[(&str, &str)], args: &[&str]| {
        let ended = by_hand(&lab, &[(first, &[]), (second, args)]);
        assert!(ended.iter().all(|r| r.code != 0), "{} {}", ended[0].stderr, ended[1].stderr);
        assert!(
            ended.iter().all(|r| r.stderr.lines().filter(|l| l.starts_with("linformer")).count() == 1),
            "{} {}",
            ended[0].stderr,
            ended[1].stderr
        );
        ended.into_iter().map(|r| r.stderr).collect::<Vec<_>>()
    };
    let port = free_port();
    // A config that differs.
    let said = both(&torchrun("0", "2", &port), &torchrun("1", "2", &port), &["train.seed=5"]);
    assert!(said.iter().all(|s| s.contains("differ in config.train.seed: 5 and 0")), "{said:?}");
    // World sizes that differ.
    let port = free_port();
    let said = both(&torchrun("0", "2", &port), &torchrun("1", "3", &port), &[]);
    assert!(said.iter().all(|s| s.contains("rank 1 and rank 0 differ in WORLD_SIZE: 3 and 2")), "{said:?}");
    // One rank twice.
    let port = free_port();
    let said = by_hand(&lab, &[(&torchrun("0", "3", &port), &[]), (&torchrun("1", "3", &port), &[]), (&torchrun("1", "3", &port), &[])]);
    assert!(
        said.iter().all(|r| r.code == 1 && r.stderr.contains("is there twice")),
        "{} {} {}",
        said[0].stderr,
        said[1].stderr,
        said[2].stderr
    );
    // One that does not come.
    let port = free_port();
    let said = by_hand(&lab, &[(&torchrun("0", "3", &port), &[]), (&torchrun("2", "3", &port), &[])]);
    assert!(
        said.iter().all(|r| r.code == 1 && r.stderr.contains("2 of 3 ranks came within 4 s") && r.stderr.contains("missing: 1.")),
        "{} {}",
        said[0].stderr,
        said[1].stderr
    );
    // Data that differ: the corpus of the second is another one.
    lab.write("other/0.txt", common::prose(3).repeat(20));
    lab.write("other/1.txt", common::prose(4).repeat(20));
    assert!(!lab.path("run/config.json").exists(), "nothing was begun");
}

/// Case 47: rank 0 knows the cause, and says it first and fast.
#[test]
fn a_port_that_is_taken_and_an_address_that_is_unknown() {
    let lab = Lab::new();
    lab.config("c.json", &[("run.ranks.join_timeout", json!(5))]);
    let taken = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let begun = Instant::now();
    let ended = by_hand(&lab, &[(&torchrun("0", "2", &port), &[])]);
    assert!(begun.elapsed() < Duration::from_secs(20));
    assert!(
        ended[0].code == 1 && ended[0].stderr.contains(&format!("MASTER_PORT: port {port} is taken on this machine")),
        "{}",
        ended[0].stderr
    );
    let mut unknown = torchrun("1", "2", &port);
    unknown[2].1 = "no-such-machine.invalid";
    let ended = by_hand(&lab, &[(&unknown, &[])]);
    assert!(ended[0].code == 1 && ended[0].stderr.contains("MASTER_ADDR: found \"no-such-machine.invalid\""), "{}", ended[0].stderr);
    let ended = by_hand(&lab, &[(&torchrun("1", "2", &free_port()), &[])]);
    assert!(ended[0].code == 1 && ended[0].stderr.contains("rank 0 does not answer at 127.0.0.1"), "{}", ended[0].stderr);
}

fn ip(args: &str) -> bool {
    Command::new("ip").args(args.split_whitespace()).stderr(Stdio::null()).status().is_ok_and(|s| s.success())
}

/// Two machines, as network namespaces with a cable between them, which is cut. Needs root and iproute2.
#[test]
#[ignore = "needs root"]
fn a_network_that_is_cut_ends_all_in_bounded_time() {
    let lab = Lab::new();
    lab.config(
        "c.json",
        &[
            ("train.eval_every", json!(0)),
            ("train.checkpoint_every", json!(0)),
            ("run.ranks.peer_timeout", json!(3)),
            ("train.max_steps", json!(1_000_000)),
        ],
    );
    let id = std::process::id();
    let [a, b] = ["a", "b"].map(|end| format!("lf{id}{end}"));
    let built = [&a, &b].iter().all(|n| ip(&format!("netns add {n}")))
        && ip(&format!("link add va{id} netns {a} type veth peer name vb{id} netns {b}"))
        && ip(&format!("-n {a} addr add 10.77.0.1/24 dev va{id}"))
        && ip(&format!("-n {b} addr add 10.77.0.2/24 dev vb{id}"))
        && [(&a, "lo"), (&b, "lo")].iter().all(|(n, d)| ip(&format!("-n {n} link set {d} up")))
        && ip(&format!("-n {a} link set va{id} up"))
        && ip(&format!("-n {b} link set vb{id} up"));
    let clean = || {
        [&a, &b].iter().for_each(|n| {
            ip(&format!("netns del {n}"));
        })
    };
    if !built {
        clean();
        panic!("network namespaces cannot be made here: run as root, with iproute2");
    }
    let start = |namespace: &str, rank: &str| {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace, env!("CARGO_BIN_EXE_linformer"), "pretrain", "c.json", "--quiet"]);
        command.current_dir(lab.path("")).env("OMP_NUM_THREADS", "1");
        command.envs([("RANK", rank), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "10.77.0.1"), ("MASTER_PORT", "29511")]);
        command.stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
    };
    let mut ranks = [start(&a, "0"), start(&b, "1")];
    wait_until("the ranks did not train", || {
        let ended = ranks.iter_mut().any(|r| r.try_wait().unwrap().is_some());
        if ended {
            clean()
        }
        assert!(!ended, "ended early");
        std::fs::metadata(lab.path("run/metrics.jsonl")).map_or(0, |m| m.len()) > 1000
    });
    let begun = Instant::now();
    ip(&format!("-n {a} link set va{id} down"));
    let ended = ranks.map(|child| ran(child.wait_with_output().unwrap()));
    clean();
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    for (rank, other) in [(0, "rank 1 ("), (1, "rank 0 (")] {
        let said = &ended[rank].stderr;
        assert!(ended[rank].code == 1 && said.contains(other) && said.contains("no sign of life"), "rank {rank}: {said}");
        assert_eq!(said.lines().filter(|l| l.starts_with("linformer:")).count(), 1, "{said}");
    }
}

/// ZeRO-1; the run goes on without it, and with another number of ranks.
#[test]
fn a_sharded_optimizer_gives_the_same_bits_and_the_same_checkpoint() {
    let lab = Lab::new();
    for precision in ["fp32", "bf16"] {
        lab.config("c.json", &[("train.precision", json!(precision)), ("train.schedule", json!("constant"))]);
        let (plain, sharded) = (format!("plain-{precision}"), format!("sharded-{precision}"));
        let [plain_dir, sharded_dir] = [&plain, &sharded].map(|run| format!("run.dir={run}"));
        let zero = "run.ranks.shard_optimizer=true";
        launched(&lab, 3, &["pretrain", "c.json", &plain_dir, "--quiet"]);
        launched(&lab, 3, &["pretrain", "c.json", &sharded_dir, zero, "train.max_steps=4", "--quiet"]);
        launched(&lab, 3, &["pretrain", "c.json", &sharded_dir, zero, "--resume", "auto", "--quiet"]);
        assert_eq!(weights_sha256(&lab.path(&plain), 6), weights_sha256(&lab.path(&sharded), 6), "{precision}");
        launched(&lab, 1, &["pretrain", "c.json", &sharded_dir, "train.max_steps=8", "--resume", "auto", "--quiet"]);
    }
}

#[test]
fn sums_between_ranks_are_timed() {
    let lab = Lab::new();
    let ran = launch(&lab, 3, &["collectives", "--mib", "1", "--repetitions", "3"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let lines: Vec<Value> = ran.stdout.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(lines.iter().map(|l| l["bytes"].as_f64().unwrap()).collect::<Vec<_>>(), [4096.0, 16384.0, 65536.0, 262144.0, 1048576.0]);
    assert!(lines.iter().all(|l| l["ranks"] == 3 && l["seconds"].as_f64().unwrap() > 0.0));
}

#[test]
fn a_sweep_makes_several_runs_at_a_time_or_is_an_array() {
    let lab = Lab::new();
    lab.config("c.json", &[]);
    lab.write("s.json", json!({"base": "c.json", "dir": "sweep", "grid": {"train.seed": [0, 1, 2]}}).to_string());
    let script = lab.ok(&["sweep", "s.json", "--emit-slurm", "train.max_steps=4"]).stdout;
    assert!(script.contains("#SBATCH --array=0-2\n") && script.contains("'train.max_steps=4' --only \"$SLURM_ARRAY_TASK_ID\""), "{script}");
    // As a job of the array: one run, whatever the variables of its step say.
    let job = lab
        .command(&["sweep", "s.json", "--only", "1", "train.max_steps=4"])
        .env("SLURM_STEP_NUM_TASKS", "1")
        .env("SLURM_PROCID", "0")
        .output();
    let job = ran(job.unwrap());
    assert_eq!(job.code, 0, "{}", job.stderr);
    assert!(lab.path("sweep/seed=1/summary.json").exists() && !lab.path("sweep/seed=0").exists());
    assert_eq!(lab.run(&["sweep", "s.json", "--only", "3"]).code, 1);
    let all = lab.ok(&["sweep", "s.json", "--at-once", "2", "train.max_steps=4"]);
    assert!(all.stdout.lines().nth(2).unwrap().starts_with("run       3 "), "{}", all.stdout);
    let one = lab.ok(&["pretrain", "c.json", "run.dir=alone", "train.seed=2", "train.max_steps=4", "--quiet"]);
    assert_eq!(weights_sha256(&lab.path("alone"), 4), weights_sha256(&lab.path("sweep/seed=2"), 4), "{}", one.stderr);
}

#[test]
fn one_bar_one_metrics_file_one_event_file() {
    let lab = Lab::new();
    lab.config("c.json", &[("train.log_every", json!(1))]);
    launched(&lab, 2, &["pretrain", "c.json"]);
    let lines = common::metrics(&lab.path("run"));
    assert_eq!(lines.iter().filter(|m| m["split"] == "train").count(), 6);
    common::series(&lab.path("run"));
    let text = lab.read("run/metrics.jsonl");
    let line: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    for key in ["communication", "communication_exposed", "communication_overlap"] {
        assert!(line[key].as_f64().is_some_and(|v| v >= 0.0), "{key}: {line}");
    }
    assert_eq!(logs(&lab).lines().count(), 1, "the second rank has nothing to say: {}", logs(&lab));
}
