//! A rank that is stopped, dies, hangs or is cut off ends all in bounded time, and what was saved is good.

use super::*;

/// A signal to one rank stops all after the same step: no rank waits for one that has stopped.
#[test]
fn case_49_sigterm_to_any_one_rank_makes_all_checkpoint_and_the_resumed_run_is_the_whole_one() {
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

/// Nearly all the time goes into evaluations, and all steps are of the warm-up.
#[test]
fn case_38_sigterm_in_an_evaluation_of_the_warm_up_stops_all_and_loses_nothing() {
    let lab = Lab::new();
    lab.config(
        "c.json",
        &[
            ("train.warmup_steps", json!(100_000)),
            ("train.eval_every", json!(1)),
            ("train.log_every", json!(1)),
            ("train.checkpoint_every", json!(1)),
            ("train.keep_checkpoints", json!(100_000)),
            ("data.max_validation_sequences", json!(100_000)),
        ],
    );
    let last =
        |run: &str| steps(&lab.path(run)).iter().filter_map(|name| name.strip_prefix("step-")?.parse::<u64>().ok()).max().unwrap_or(0);
    let until = |run: &str, resume: &str, step: u64| {
        let job = Job::start(&lab, 3, &[ENDLESS, &format!("run.dir={run}"), "--resume", resume]);
        wait_until("no checkpoint", || last(run) >= step);
        signal(job.ranks[2], "-TERM");
        let ran = job.end();
        assert_eq!(ran.code, 130, "{}\n{}", ran.stderr, logs(&lab));
    };
    until("cut", "never", 1);
    let step = last("cut") + 2;
    until("cut", "auto", step);
    until("whole", "never", step);
    assert_eq!(weights_sha256(&lab.path("cut"), step), weights_sha256(&lab.path("whole"), step));
    let lines = |run: &str| metrics(&lab.path(run)).into_iter().filter(|m| m["step"].as_u64().unwrap() <= step).collect::<Vec<_>>();
    assert_eq!(lines("cut"), lines("whole"), "every evaluation once");
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

/// An error of one rank is told once by all.
#[test]
fn case_49_an_error_of_the_first_rank_is_the_one_that_is_told() {
    let lab = Lab::new();
    lab.config("c.json", &[]);
    launched(&lab, 2, &["pretrain", "c.json", "--quiet"]);
    let ran = launch(&lab, 2, &["pretrain", "c.json", "--quiet"]);
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("rank 0: ") && ran.stderr.contains("a run is here already"), "{}", ran.stderr);
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

/// Overwrites what stands in a process's memory where `old` stands; how many places there were.
fn overwrite(pid: u32, old: &[u8], new: &[u8]) -> usize {
    use std::os::unix::fs::FileExt;
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let memory = std::fs::OpenOptions::new().read(true).write(true).open(format!("/proc/{pid}/mem")).unwrap();
    let mut places = 0;
    for line in maps.lines().filter(|l| l.contains(" rw-p ")) {
        let (from, to) = line.split_whitespace().next().unwrap().split_once('-').unwrap();
        let [from, to] = [from, to].map(|text| u64::from_str_radix(text, 16).unwrap());
        let mut bytes = vec![0; (to - from) as usize];
        // Some mappings of the kernel cannot be read.
        if memory.read_exact_at(&mut bytes, from).is_err() {
            continue;
        }
        for at in memchr::memmem::find_iter(&bytes, old) {
            memory.write_all_at(new, from + at as u64).unwrap();
            places += 1;
        }
    }
    places
}

/// A weight changes in the memory of one rank. Steps of no length, so that the weights are those of the checkpoint. Writes into
/// another process's memory.
#[test]
#[ignore = "needs root"]
fn a_rank_that_came_apart_is_found_at_the_next_comparison_and_named() {
    let lab = Lab::new();
    lab.config(
        "c.json",
        &[
            ("train.learning_rate", json!(1e-30)),
            ("train.weight_decay", json!(0.0)),
            ("train.eval_every", json!(0)),
            ("train.checkpoint_every", json!(5)),
            ("run.ranks.compare_every", json!(20)),
        ],
    );
    let job = Job::start(&lab, 3, &[ENDLESS]);
    let name = "roberta.embeddings.word_embeddings.weight";
    let mut weight = None;
    // A checkpoint may still be on its way, or gone again: older ones make room.
    wait_until("no checkpoint", || {
        let read = |step: &String| tch::Tensor::read_safetensors(lab.path(&format!("run/checkpoints/{step}/model.safetensors"))).ok();
        let weights = steps(&lab.path("run")).iter().filter(|step| !step.ends_with(".tmp")).find_map(read);
        weight = weights.into_iter().flatten().find(|(n, _)| n == name).map(|(_, weight)| weight);
        weight.is_some()
    });
    let weight = weight.unwrap();
    let row: Vec<f32> = Vec::try_from(weight.get(7)).unwrap();
    let old: Vec<u8> = row.iter().flat_map(|v| v.to_le_bytes()).collect();
    let new: Vec<u8> = row.iter().flat_map(|v| (v + 0.5).to_le_bytes()).collect();
    assert!(overwrite(job.ranks[2], &old, &new) > 0, "the weight is not in the memory of rank 2");
    let ran = job.end();
    let said = ran.stderr + &logs(&lab);
    assert_eq!(ran.code, 1, "{said}");
    assert!(
        said.contains("the ranks have come apart after step") && said.contains(&format!("rank 2 has other bits in {name} than rank 0")),
        "{said}"
    );
}
