//! Starts the ranks of one machine, without Python: as many processes of this program, which end together.

use crate::native::distributed::Store;
use crate::native::process::dies_with_us;
use crate::native::runtime;
use crate::train::interrupt::Interrupt;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How long the others have to end by themselves after one has failed.
const GRACE: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(20);

/// What to start.
pub struct Launch {
    /// Ranks.
    pub count: usize,
    /// Folder for what the ranks but the first write to stderr.
    pub logs: PathBuf,
    /// Command and arguments of this program.
    pub arguments: Vec<String>,
}

/// Why the ranks could not be started.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Store(#[from] crate::native::NativeError),
}

struct Running {
    child: Child,
    log: Option<PathBuf>,
    status: Option<ExitStatus>,
}

/// Runs the ranks to their end; the exit code of the first that failed, else 0.
pub fn run(launch: &Launch, interrupt: &Interrupt) -> Result<u8, LaunchError> {
    // Served here, not by rank 0: whichever rank fails, the others can read why.
    let store = Store::serve(0, GRACE)?;
    let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs());
    let job = format!("{time}-{}", std::process::id());
    let logs = launch.logs.join(&job);
    std::fs::create_dir_all(&logs).map_err(|source| LaunchError::Io { path: logs.clone(), source })?;
    let mut ranks = Vec::new();
    for rank in 0..launch.count {
        match start(launch, rank, store.port(), &job, &logs) {
            Ok(running) => ranks.push(running),
            Err(error) => {
                ranks.iter_mut().for_each(|r: &mut Running| drop(r.child.kill()));
                return Err(error);
            }
        }
    }
    Ok(watch(&mut ranks, interrupt))
}

fn start(launch: &Launch, rank: usize, port: u16, job: &str, logs: &Path) -> Result<Running, LaunchError> {
    let failed = |path: &Path| {
        let path = path.to_path_buf();
        move |source| LaunchError::Io { path, source }
    };
    let program = std::env::current_exe().map_err(failed(Path::new("linformer")))?;
    let mut command = Command::new(&program);
    command.args(&launch.arguments);
    let (rank_text, count) = (rank.to_string(), launch.count.to_string());
    let variables = [
        ("RANK", rank_text.as_str()),
        ("LOCAL_RANK", &rank_text),
        ("WORLD_SIZE", &count),
        ("LOCAL_WORLD_SIZE", &count),
        ("MASTER_ADDR", "127.0.0.1"),
        ("MASTER_PORT", &port.to_string()),
        ("TORCHELASTIC_USE_AGENT_STORE", "True"),
        ("TORCHELASTIC_RUN_ID", job),
    ];
    command.envs(variables);
    if std::env::var_os("OMP_NUM_THREADS").is_none() {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        command.env("OMP_NUM_THREADS", (cores / launch.count).max(1).to_string());
    }
    let log = (rank > 0).then(|| logs.join(format!("rank-{rank}.log")));
    if let Some(path) = &log {
        command.stdout(Stdio::null()).stderr(File::create(path).map_err(failed(path))?);
    }
    dies_with_us(&mut command);
    let child = command.spawn().map_err(failed(&program))?;
    Ok(Running { child, log, status: None })
}

/// Waits for all; after the first failure, only so long.
fn watch(ranks: &mut [Running], interrupt: &Interrupt) -> u8 {
    let mut told = false;
    let mut failure: Option<(u8, Instant)> = None;
    loop {
        for (rank, running) in ranks.iter_mut().enumerate().filter(|(_, r)| r.status.is_none()) {
            let Ok(Some(status)) = running.child.try_wait() else { continue };
            running.status = Some(status);
            if !status.success() && failure.is_none() {
                failure = Some((code_of(status), Instant::now()));
                if status.code() != Some(130) {
                    describe(rank, running, status);
                }
            }
        }
        if ranks.iter().all(|r| r.status.is_some()) {
            return failure.map_or(0, |(code, _)| code);
        }
        if interrupt.is_terminate() && !told {
            ranks.iter().filter(|r| r.status.is_none()).for_each(|r| runtime::terminate(&r.child));
            told = true;
        }
        if failure.is_some_and(|(_, at)| at.elapsed() > GRACE) {
            for (rank, running) in ranks.iter_mut().enumerate().filter(|(_, r)| r.status.is_none()) {
                say(&format!("rank {rank} has not ended and is killed"));
                let _ = running.child.kill();
            }
        }
        std::thread::sleep(POLL);
    }
}

fn code_of(status: ExitStatus) -> u8 {
    status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

/// What a rank ended with. The first rank has written to the console itself.
fn describe(rank: usize, running: &Running, status: ExitStatus) {
    if let Some(signal) = status.signal() {
        return say(&format!("rank {rank} (process {}) was killed by signal {signal}; the others end", running.child.id()));
    }
    let Some(path) = &running.log else { return };
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let last = text.lines().last().unwrap_or("without a word").trim_start_matches("linformer: ");
    say(&format!("rank {rank}: {last} (its log: {})", path.display()));
}

fn say(line: &str) {
    let _ = writeln!(io::stderr(), "linformer: {line}");
}
