//! Which rank of how many this process is, and where the ranks meet: from the environment that a launcher sets.
//!
//! | launcher | rank, size, rank on its machine | where the ranks meet |
//! |---|---|---|
//! | `torchrun --no-python`, `linformer launch`, by hand | RANK, WORLD_SIZE, LOCAL_RANK | MASTER_ADDR, MASTER_PORT |
//! | `mpirun` of Open MPI | OMPI_COMM_WORLD_RANK, _SIZE, _LOCAL_RANK | MASTER_ADDR, MASTER_PORT; on one machine without them |
//! | `srun` | SLURM_PROCID, SLURM_STEP_NUM_TASKS, SLURM_LOCALID | the first of SLURM_STEP_NODELIST, a port by the job's number |
//! | `mpirun` of MPICH or Intel | PMI_RANK, PMI_SIZE, MPI_LOCALRANKID | as Open MPI |

use super::WorldError;

/// Of this process among the ranks of its job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub rank: usize,
    pub size: usize,
    /// Rank among those of this machine: which of its devices to take.
    pub local_rank: usize,
    /// Where the store is.
    pub host: String,
    pub port: u16,
    /// Whether rank 0 serves the store; else the launcher does.
    pub rank_zero_serves: bool,
    /// Names one start of one job, where the launcher has a name for it.
    pub job: String,
}

/// Where the ranks of one machine meet when nothing is said.
const DEFAULT_PORT: u16 = 29500;

type Get<'a> = &'a dyn Fn(&str) -> Option<String>;

/// A launcher's names.
struct Names {
    rank: &'static str,
    size: &'static str,
    local_rank: &'static str,
    local_size: &'static str,
}

const TORCHRUN: Names = Names { rank: "RANK", size: "WORLD_SIZE", local_rank: "LOCAL_RANK", local_size: "LOCAL_WORLD_SIZE" };
const OPEN_MPI: Names = Names {
    rank: "OMPI_COMM_WORLD_RANK",
    size: "OMPI_COMM_WORLD_SIZE",
    local_rank: "OMPI_COMM_WORLD_LOCAL_RANK",
    local_size: "OMPI_COMM_WORLD_LOCAL_SIZE",
};
/// SLURM_STEP_NUM_TASKS is there in processes that `srun` started; SLURM_NTASKS also in the batch script around it.
const SLURM: Names = Names { rank: "SLURM_PROCID", size: "SLURM_STEP_NUM_TASKS", local_rank: "SLURM_LOCALID", local_size: "" };
const PMI: Names = Names { rank: "PMI_RANK", size: "PMI_SIZE", local_rank: "MPI_LOCALRANKID", local_size: "MPI_LOCALNRANKS" };

impl Place {
    /// None: one process by itself.
    pub fn from_environment() -> Result<Option<Self>, WorldError> {
        Self::read(&|name| std::env::var(name).ok())
    }

    fn read(get: Get) -> Result<Option<Self>, WorldError> {
        let either = |names: &Names| get(names.rank).is_some() || get(names.size).is_some();
        if either(&TORCHRUN) {
            Self::torchrun(get)
        } else if either(&OPEN_MPI) {
            Self::mpi(get, &OPEN_MPI)
        } else if get(SLURM.size).is_some() {
            Self::slurm(get)
        } else if either(&PMI) {
            Self::mpi(get, &PMI)
        } else {
            Ok(None)
        }
    }

    fn torchrun(get: Get) -> Result<Option<Self>, WorldError> {
        let ranks = Ranks::read(get, &TORCHRUN)?;
        let address = |name: &str| get(name).ok_or_else(|| missing(name, "the first machine's name or address, and a free port of it"));
        let (host, port) = match ranks.size {
            1 => (String::new(), 0),
            _ => (address("MASTER_ADDR")?, parse("MASTER_PORT", &address("MASTER_PORT")?)?),
        };
        let agent_serves = get("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|v| v.eq_ignore_ascii_case("true"));
        let names = ["TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"].map(|name| get(name).unwrap_or_default());
        Ok(ranks.at(host, port, !agent_serves, names.join("-")))
    }

    fn mpi(get: Get, names: &Names) -> Result<Option<Self>, WorldError> {
        let ranks = Ranks::read(get, names)?;
        let one_machine = ranks.local_size == Some(ranks.size);
        let host = match get("MASTER_ADDR") {
            Some(host) => host,
            None if one_machine || ranks.size == 1 => "127.0.0.1".into(),
            None => {
                return Err(missing("MASTER_ADDR", "the name or address of rank 0's machine: mpirun -x MASTER_ADDR=... -x MASTER_PORT=..."))
            }
        };
        let port = get("MASTER_PORT").map_or(Ok(DEFAULT_PORT), |port| parse("MASTER_PORT", &port))?;
        Ok(ranks.at(host, port, true, get("PMIX_NAMESPACE").unwrap_or_default()))
    }

    fn slurm(get: Get) -> Result<Option<Self>, WorldError> {
        let ranks = Ranks::read(get, &SLURM)?;
        let list = ["SLURM_STEP_NODELIST", "SLURM_NODELIST", "SLURM_JOB_NODELIST"].iter().find_map(|name| get(name));
        let host = match (get("MASTER_ADDR"), list) {
            (Some(host), _) => host,
            (None, Some(list)) => first_host(&list).ok_or_else(|| WorldError::Launch {
                variable: "SLURM_STEP_NODELIST".into(),
                message: format!("found \"{list}\", expected a list of machines; set MASTER_ADDR instead"),
            })?,
            (None, None) => return Err(missing("SLURM_STEP_NODELIST", "the machines of the job step; or set MASTER_ADDR")),
        };
        let job = ["SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT"].map(|name| get(name).unwrap_or_default());
        let number = |text: &str| text.parse::<u64>().unwrap_or(0);
        // Jobs that share a machine, and steps of one job, meet at ports of their own.
        let port = 20_000 + (number(&job[0]) * 31 + number(&job[1])) % 20_000;
        let port = get("MASTER_PORT").map_or(Ok(port as u16), |port| parse("MASTER_PORT", &port))?;
        Ok(ranks.at(host, port, true, job.join("-")))
    }
}

struct Ranks {
    rank: usize,
    size: usize,
    local_rank: usize,
    local_size: Option<usize>,
}

impl Ranks {
    fn read(get: Get, names: &Names) -> Result<Self, WorldError> {
        let number = |name: &str| get(name).map(|text| parse::<usize>(name, &text)).transpose();
        let rank = number(names.rank)?.ok_or_else(|| missing(names.rank, &format!("0 to {} - 1", names.size)))?;
        let size = number(names.size)?.ok_or_else(|| missing(names.size, "the number of ranks"))?;
        if rank >= size {
            let message = format!("found {rank}, but {} is {size}: expected 0 to {}", names.size, size as i64 - 1);
            return Err(WorldError::Launch { variable: names.rank.into(), message });
        }
        let local_rank = number(names.local_rank)?.unwrap_or(0);
        Ok(Self { rank, size, local_rank, local_size: number(names.local_size)? })
    }

    /// None for a job of one process.
    fn at(self, host: String, port: u16, rank_zero_serves: bool, job: String) -> Option<Place> {
        let Self { rank, size, local_rank, .. } = self;
        (size > 1).then_some(Place { rank, size, local_rank, host, port, rank_zero_serves, job })
    }
}

fn parse<T: std::str::FromStr>(name: &str, text: &str) -> Result<T, WorldError> {
    text.trim().parse().map_err(|_| WorldError::Launch { variable: name.into(), message: format!("found \"{text}\", expected a number") })
}

fn missing(name: &str, what: &str) -> WorldError {
    WorldError::Launch { variable: name.into(), message: format!("is not set, expected {what}") }
}

/// The first of `node[07-12,20],other3`: `node07`.
fn first_host(list: &str) -> Option<String> {
    let list = list.trim();
    let Some((before, inside)) = list.split_once('[').filter(|(before, _)| !before.contains(',')) else {
        return list.split(',').next().filter(|host| !host.is_empty()).map(String::from);
    };
    let (inside, after) = inside.split_once(']')?;
    let first = inside.split([',', '-']).next()?;
    let suffix = after.split([',', '[']).next().unwrap_or_default();
    Some(format!("{before}{first}{suffix}"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Option<Place>, WorldError> {
        let variables = variables.to_vec();
        Place::read(&move |name| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| v.to_string()))
    }

    const TORCH: [(&str, &str); 5] =
        [("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1"), ("MASTER_ADDR", "10.0.0.1"), ("MASTER_PORT", "4242")];

    #[test]
    fn torchrun_with_and_without_a_store_of_its_own() {
        let place = read(&TORCH).unwrap().unwrap();
        assert_eq!((place.rank, place.size, place.local_rank, place.host.as_str(), place.port), (1, 2, 1, "10.0.0.1", 4242));
        assert!(place.rank_zero_serves);
        let elastic = [("TORCHELASTIC_USE_AGENT_STORE", "True"), ("TORCHELASTIC_RUN_ID", "x"), ("TORCHELASTIC_RESTART_COUNT", "3")];
        let place = read(&[&TORCH[..], &elastic].concat()).unwrap().unwrap();
        assert!(!place.rank_zero_serves && place.job == "x-3");
        assert_eq!(read(&[("RANK", "0"), ("WORLD_SIZE", "1")]).unwrap(), None);
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        let without = |name: &str| TORCH.into_iter().filter(|(n, _)| *n != name).collect::<Vec<_>>();
        let with =
            |name: &str, value: &'static str| TORCH.into_iter().map(|(n, v)| (n, if n == name { value } else { v })).collect::<Vec<_>>();
        for (variables, text) in [
            (without("RANK"), "RANK: is not set, expected 0 to WORLD_SIZE - 1"),
            (without("WORLD_SIZE"), "WORLD_SIZE: is not set, expected the number of ranks"),
            (without("MASTER_ADDR"), "MASTER_ADDR: is not set"),
            (without("MASTER_PORT"), "MASTER_PORT: is not set"),
            (with("RANK", "2"), "RANK: found 2, but WORLD_SIZE is 2: expected 0 to 1"),
            (with("WORLD_SIZE", "two"), "WORLD_SIZE: found \"two\", expected a number"),
            (with("MASTER_PORT", "70000"), "MASTER_PORT: found \"70000\", expected a number"),
        ] {
            let error = read(&variables).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
    }

    #[test]
    fn mpi_meets_by_itself_on_one_machine_only() {
        let base = [("OMPI_COMM_WORLD_RANK", "2"), ("OMPI_COMM_WORLD_SIZE", "4"), ("OMPI_COMM_WORLD_LOCAL_RANK", "0")];
        let one = read(&[&base[..], &[("OMPI_COMM_WORLD_LOCAL_SIZE", "4")]].concat()).unwrap().unwrap();
        assert_eq!((one.host.as_str(), one.port), ("127.0.0.1", DEFAULT_PORT));
        let two = [&base[..], &[("OMPI_COMM_WORLD_LOCAL_SIZE", "2")]].concat();
        assert!(read(&two).unwrap_err().to_string().contains("-x MASTER_ADDR"));
        assert_eq!(read(&[&two[..], &[("MASTER_ADDR", "a")]].concat()).unwrap().unwrap().host, "a");
        let pmi = [("PMI_RANK", "1"), ("PMI_SIZE", "2"), ("MPI_LOCALRANKID", "1"), ("MPI_LOCALNRANKS", "2")];
        assert_eq!(read(&pmi).unwrap().unwrap().local_rank, 1);
    }

    #[test]
    fn slurm_by_its_step_and_not_in_the_batch_script() {
        let script = [("SLURM_PROCID", "0"), ("SLURM_NTASKS", "8"), ("SLURM_JOB_ID", "77"), ("SLURM_JOB_NODELIST", "gpu[03-04]")];
        assert_eq!(read(&script).unwrap(), None);
        let step = [("SLURM_STEP_NUM_TASKS", "8"), ("SLURM_STEP_NODELIST", "gpu[03-04]"), ("SLURM_STEP_ID", "1"), ("SLURM_LOCALID", "0")];
        let place = read(&[&script[..], &step].concat()).unwrap().unwrap();
        assert_eq!((place.host.as_str(), place.size, place.port), ("gpu03", 8, 20_000 + 77 * 31 + 1));
        // The launcher's own variables come first: torchrun inside a Slurm job.
        assert_eq!(read(&[&step[..], &TORCH].concat()).unwrap().unwrap().size, 2);
    }

    #[test]
    fn the_first_machine_of_a_list() {
        for (list, first) in
            [("a1", "a1"), ("a1,b[2-3]", "a1"), ("n[07-12,20],m3", "n07"), ("n[4,6].cluster", "n4.cluster"), ("x[1-2]-ib", "x1-ib")]
        {
            assert_eq!(first_host(list).as_deref(), Some(first), "{list}");
        }
        assert_eq!(first_host(""), None);
    }
}
