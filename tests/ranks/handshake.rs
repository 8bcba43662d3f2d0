//! How the ranks find each other, and what is refused before anything begins.

use super::*;

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
    // A rank that cannot be.
    let said = by_hand(&lab, &[(&torchrun("2", "2", &port), &[])]);
    assert!(said[0].code == 1 && said[0].stderr.contains("RANK: found 2, but WORLD_SIZE is 2"), "{}", said[0].stderr);
    assert!(!lab.path("run/config.json").exists(), "nothing was begun");
}

/// Case 47: rank 0 knows the cause, and says it first and fast.
#[test]
fn case_47_a_port_that_is_taken_is_said_by_rank_0_at_once_and_an_unknown_address_by_who_looks_for_it() {
    let lab = Lab::new();
    lab.config("c.json", &[("run.ranks.join_timeout", json!(60))]);
    let taken = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    // The other rank reaches whoever has the port, and waits for its time-out.
    let mut other = start(&lab, &torchrun("1", "2", &port), &[]);
    let begun = Instant::now();
    let ended = by_hand(&lab, &[(&torchrun("0", "2", &port), &[])]);
    assert!(begun.elapsed() < Duration::from_secs(30), "not before the others' time-out: {:?}", begun.elapsed());
    assert!(other.try_wait().unwrap().is_none(), "the other rank spoke first");
    other.kill().unwrap();
    other.wait().unwrap();
    assert!(
        ended[0].code == 1 && ended[0].stderr.contains(&format!("MASTER_PORT: port {port} is taken on this machine")),
        "{}",
        ended[0].stderr
    );
    lab.config("c.json", &[("run.ranks.join_timeout", json!(5))]);
    let mut unknown = torchrun("1", "2", &port);
    unknown[2].1 = "no-such-machine.invalid";
    let ended = by_hand(&lab, &[(&unknown, &[])]);
    assert!(ended[0].code == 1 && ended[0].stderr.contains("MASTER_ADDR: found \"no-such-machine.invalid\""), "{}", ended[0].stderr);
    let ended = by_hand(&lab, &[(&torchrun("1", "2", &free_port()), &[])]);
    assert!(ended[0].code == 1 && ended[0].stderr.contains("rank 0 does not answer at 127.0.0.1"), "{}", ended[0].stderr);
}

/// Both ranks end with the same difference; the part of the line from `differ in` to the remedy.
fn difference(ended: &[Ran]) -> String {
    let of = |r: &Ran| {
        assert_ne!(r.code, 0);
        let from = r.stderr.find("differ in ").unwrap_or_else(|| panic!("{}", r.stderr));
        r.stderr[from..].split(';').next().unwrap().to_string()
    };
    let said: Vec<String> = ended.iter().map(of).collect();
    assert!(said.iter().all(|s| *s == said[0]), "{said:?}");
    said[0].clone()
}

/// Two machines whose files differ under the same paths.
#[test]
fn data_and_weights_that_differ_are_refused_with_both_values() {
    let labs = [Lab::new(), Lab::new()];
    labs.iter().for_each(|lab| lab.config("c.json", &[]));
    let both = |args: &[&str]| {
        let port = free_port();
        let children = ["0", "1"].map(|rank| start(&labs[usize::from(rank == "1")], &torchrun(rank, "2", &port), args));
        children.map(|child| ran(child.wait_with_output().unwrap()))
    };
    // Models of the same shape from other weights.
    for (lab, seed) in labs.iter().zip(["0", "1"]) {
        lab.ok(&["pretrain", "c.json", "run.dir=parent", &format!("train.seed={seed}"), "--quiet"]);
    }
    let said = difference(&both(&["run.init_from=parent"]));
    let (_, values) = said.split_once(": ").unwrap();
    let (other, first) = values.split_once(" and ").unwrap();
    assert!(said.contains("init_from") && other != first && other.len() > 20, "{said}");
    // Another word in one document.
    labs[1].write("text/05.txt", common::prose(5).replacen("saw", "sees", 1));
    let said = difference(&both(&[]));
    let (_, values) = said.split_once(": ").unwrap();
    let (other, first) = values.split_once(" and ").unwrap();
    assert!(said.starts_with("differ in inputs.") && other != first && other.len() > 20, "{said}");
    assert!(labs.iter().all(|lab| !lab.path("run").exists()), "nothing was begun");
}

/// Another version of the program, as its first words to rank 0 show it.
#[test]
fn a_rank_of_another_version_is_refused_with_both_values() {
    let lab = Lab::new();
    lab.config("c.json", &[]);
    let port = free_port();
    let first = start(&lab, &torchrun("0", "2", &port), &[]);
    let limit = Duration::from_secs(60);
    let store = linformer::native::distributed::Store::connect("127.0.0.1", port.parse().unwrap(), limit).unwrap();
    let hello = json!({"size": 2, "version": "9.9.9", "libtorch": "2.11.0", "host": "there", "address": "127.0.0.1", "pid": 1});
    assert_eq!(store.add("linformer--/rank/1", 1).unwrap(), 1);
    store.set("linformer--/hello/1", hello.to_string().as_bytes()).unwrap();
    let ended = ran(first.wait_with_output().unwrap());
    let version = env!("CARGO_PKG_VERSION");
    let wanted = format!("rank 1 and rank 0 differ in version: \"9.9.9\" and \"{version}\"");
    assert!(ended.code == 1 && ended.stderr.contains(&wanted), "{}", ended.stderr);
}

/// A machine of another name, whose way to rank 0 is loopback all the same. Needs the right to make namespaces.
#[test]
#[ignore = "needs root or user namespaces"]
fn case_48_a_name_that_stands_for_loopback_is_refused_with_the_variable_to_set() {
    let lab = Lab::new();
    lab.config("c.json", &[("run.ranks.join_timeout", json!(20))]);
    let port = free_port();
    let first = start(&lab, &torchrun("0", "2", &port), &[]);
    let mut there = Command::new("unshare");
    there.args(["--user", "--map-root-user", "--uts", "sh", "-c", "hostname elsewhere && exec \"$@\"", "sh"]);
    there.args([env!("CARGO_BIN_EXE_linformer"), "pretrain", "c.json", "--quiet"]).current_dir(lab.path("")).env("OMP_NUM_THREADS", "1");
    there.envs(torchrun("1", "2", &port)).stderr(Stdio::piped()).stdout(Stdio::piped());
    let ended = [first, there.spawn().unwrap()].map(|child| ran(child.wait_with_output().unwrap()));
    for rank in ended {
        assert!(rank.code == 1 && rank.stderr.contains("GLOO_SOCKET_IFNAME"), "{}", rank.stderr);
        assert!(rank.stderr.contains("would be reached at 127.0.0.1"), "{}", rank.stderr);
    }
}
