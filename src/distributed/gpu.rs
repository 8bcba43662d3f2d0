//! Ranks on GPUs: which one each takes, and NCCL between them. What lies on the CPU still travels over Gloo.

use super::{World, WorldError};
use crate::native::distributed::host_name;
use crate::native::nccl::Nccl;

/// The GPU of a rank by its number on its machine; None: there are fewer. A launcher may show each rank its own GPU only, such as
/// `srun --gpus-per-task 1`.
pub fn choose(local_rank: usize, visible: usize) -> Option<usize> {
    match visible {
        1 => Some(0),
        _ => (local_rank < visible).then_some(local_rank),
    }
}

impl World {
    /// This rank's number among those of its machine.
    pub fn local_rank(&self) -> usize {
        self.joined.as_ref().map_or(0, |j| j.place.local_rank)
    }

    /// Lets the ranks meet over NCCL, each with a GPU of its own.
    pub fn join_gpus(&self, device: usize) -> Result<(), WorldError> {
        let Some(joined) = &self.joined else { return Ok(()) };
        let nccl = Nccl::load().map_err(|source| self.native(source))?;
        let name = format!("{} {}", host_name(), nccl.device(device).map_err(|source| self.native(source))?);
        let names = self.gather_texts(&name).map_err(|source| self.native(source))?;
        if let Some((first, second)) = twice(&names) {
            return Err(WorldError::Launch {
                variable: "LOCAL_RANK".into(),
                message: format!(
                    "ranks {first} and {second} have the same GPU ({}); start at most as many ranks a machine as it has GPUs, each with its own LOCAL_RANK or CUDA_VISIBLE_DEVICES",
                    names[first]
                ),
            });
        }
        let prefix = format!("{}/nccl", joined.prefix);
        nccl.join(&joined.group, &joined.store, &prefix, joined.place.rank, device, joined.limit).map_err(|source| self.native(source))
    }
}

/// The first two with the same name.
fn twice(names: &[String]) -> Option<(usize, usize)> {
    names.iter().enumerate().find_map(|(i, name)| names[..i].iter().position(|other| other == name).map(|first| (first, i)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_by_the_rank_on_the_machine_or_the_only_one() {
        assert_eq!([choose(0, 4), choose(3, 4), choose(3, 1)], [Some(0), Some(3), Some(0)]);
        assert_eq!([choose(2, 2), choose(0, 0)], [None, None]);
        let names = |list: &[&str]| list.iter().map(|n| n.to_string()).collect::<Vec<_>>();
        assert_eq!(twice(&names(&["a 0", "b 0", "a 1"])), None);
        assert_eq!(twice(&names(&["a 0", "b 0", "a 1", "b 0"])), Some((1, 3)));
    }
}
