use causeway_schemas::Id;

use crate::Change;

/// The clusters of one embedding space.
///
/// The mean cosine over all pairs of two sets of unit vectors is the dot product of their sums over n·m: a cluster needs
/// but its sum and its size, and a face costs one pass over a contiguous matrix, whatever number of faces there are.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Space {
    dim: usize,
    /// In the order of their founding.
    groups: Vec<Group>,
    /// The sum of the members' vectors of each group, `dim` numbers a group. f64: a million sums lose nothing.
    sums: Vec<f64>,
    /// Faces that were added.
    faces: u64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Group {
    id: Id,
    /// Members, not 0.
    size: u64,
    /// Which face joined last, by its number in the space.
    joined: u64,
}

/// Bytes of a group in a snapshot beside its sum.
const GROUP_BYTES: usize = 16 + 8 + 8;

/// How much a mean cosine over one single pair is doubted; over k pairs it is doubted 1/√k as much, as the error of a mean.
///
/// A wrong link is for ever and a missing one is made up for by a later merge, so one pair has to say it louder than a
/// hundred. 0.05 is 0.6 of the standard deviation of strangers' cosines (0.084 on LFW with `SFace`): with the threshold 0.40
/// two single faces link from 0.45 on, which a tenth as many pairs of strangers reach as 0.40.
const DOUBT: f64 = 0.05;

/// Where a face belongs.
#[derive(Debug, PartialEq)]
pub(crate) enum Place {
    /// Near to no cluster: it founds one.
    Founds,
    /// Near to one, and perhaps what joins several.
    Joins {
        /// The oldest of all that are joined.
        cluster: Id,
        /// Mean cosine to the members of the nearest cluster.
        score: f64,
        /// The other clusters that are joined, nearest first.
        merges: Vec<Id>,
    },
}

impl Space {
    pub(crate) fn new(dim: usize) -> Self {
        Self { dim, groups: Vec::new(), sums: Vec::new(), faces: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.groups.len()
    }

    pub(crate) fn clusters(&self) -> impl Iterator<Item = (Id, u64)> {
        self.groups.iter().map(|group| (group.id, group.size))
    }

    /// Where the unit vector `face` belongs when faces join, and clusters merge, from the mean cosine `threshold` on, all
    /// doubt subtracted.
    pub(crate) fn place(&self, face: &[f32], threshold: f64) -> Place {
        let mut joined = Joined { sum: face.iter().map(|&x| f64::from(x)).collect(), size: 1, groups: Vec::new() };
        let Some(nearest) = self.nearest(&joined, threshold) else { return Place::Founds };
        let score = self.mean_cosine(&joined, nearest);
        self.join(&mut joined, nearest);
        // Ends: each round takes one of finitely many groups.
        while let Some(near) = self.nearest(&joined, threshold) {
            self.join(&mut joined, near);
        }
        let oldest = *joined.groups.iter().min().expect("the nearest is among them");
        let merges = joined.groups.iter().filter(|&&group| group != oldest).map(|&group| self.groups[group].id);
        Place::Joins { cluster: self.groups[oldest].id, score, merges: merges.collect() }
    }

    /// Makes a change. Adds in one fixed order (the cluster, the merged ones as listed, the face), so that whoever replays
    /// the changelog has the same sums to the last bit.
    pub(crate) fn add(&mut self, change: &Change) {
        let group = self.find(change.cluster).unwrap_or_else(|| self.found(change.cluster));
        for &younger in &change.merges {
            // Always younger; a changelog that says otherwise is not ours, and must not stop a restore.
            if let Some(younger) = self.find(younger).filter(|&younger| younger > group) {
                self.merge(group, younger);
            }
        }
        let sum = &mut self.sums[group * self.dim..][..self.dim];
        for (total, &x) in sum.iter_mut().zip(&change.vector) {
            *total += f64::from(x);
        }
        self.faces += 1;
        self.groups[group].size += 1;
        self.groups[group].joined = self.faces;
    }

    /// Where there are more clusters than `most`, those go that no face has joined for the longest time: a sixteenth of them at
    /// once, as each time moves all the others. Gives how many.
    pub(crate) fn forget(&mut self, most: usize) -> usize {
        if self.groups.len() <= most {
            return 0;
        }
        let kept = most - most / 16;
        let mut joined: Vec<u64> = self.groups.iter().map(|group| group.joined).collect();
        // No two are the same: a face joins one group.
        let place = joined.len() - kept;
        let (_, &mut oldest, _) = joined.select_nth_unstable(place);
        let mut at = 0;
        for group in 0..self.groups.len() {
            if self.groups[group].joined >= oldest {
                self.groups[at] = self.groups[group];
                self.sums.copy_within(group * self.dim..(group + 1) * self.dim, at * self.dim);
                at += 1;
            }
        }
        self.groups.truncate(at);
        self.sums.truncate(at * self.dim);
        place
    }

    /// How many faces there were, then of each group its id, size, last face, and sum, all little-endian.
    pub(crate) fn write(&self, bytes: &mut Vec<u8>) {
        bytes.reserve(8 + self.groups.len() * (GROUP_BYTES + 8 * self.dim));
        bytes.extend_from_slice(&self.faces.to_le_bytes());
        for (at, group) in self.groups.iter().enumerate() {
            let sum = &self.sums[at * self.dim..][..self.dim];
            bytes.extend_from_slice(&group.id.bits().to_le_bytes());
            bytes.extend_from_slice(&group.size.to_le_bytes());
            bytes.extend_from_slice(&group.joined.to_le_bytes());
            bytes.extend(sum.iter().flat_map(|x| x.to_le_bytes()));
        }
    }

    /// A space of so many clusters, and what is behind it; `None` where it is not all there.
    pub(crate) fn read(dim: usize, clusters: usize, bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (faces, bytes) = bytes.split_first_chunk()?;
        let entry = dim.checked_mul(8)?.checked_add(GROUP_BYTES)?;
        let (entries, rest) = bytes.split_at_checked(entry.checked_mul(clusters)?)?;
        let mut space = Self { faces: u64::from_le_bytes(*faces), ..Self::new(dim) };
        space.groups.reserve_exact(clusters);
        space.sums.reserve_exact(clusters * dim);
        for entry in entries.chunks_exact(entry) {
            let (id, entry) = entry.split_first_chunk()?;
            let (size, entry) = entry.split_first_chunk()?;
            let (joined, sum) = entry.split_first_chunk()?;
            let (size, joined) = (u64::from_le_bytes(*size), u64::from_le_bytes(*joined));
            space.groups.push(Group { id: Id::from_bits(u128::from_le_bytes(*id)), size, joined });
            space.sums.extend(sum.as_chunks().0.iter().map(|x| f64::from_le_bytes(*x)));
        }
        Some((space, rest))
    }

    /// The group that is surest to be at least as near to `joined` as `threshold`, of those not in it; the older of equally
    /// sure ones.
    fn nearest(&self, joined: &Joined, threshold: f64) -> Option<usize> {
        let mut nearest = None;
        let mut highest = threshold;
        for (index, group) in self.groups.iter().enumerate() {
            let pairs = joined.size as f64 * group.size as f64;
            let sure = self.mean_cosine(joined, index) - DOUBT / pairs.sqrt();
            let is_nearer = if nearest.is_none() { sure >= highest } else { sure > highest };
            if is_nearer && !joined.groups.contains(&index) {
                (nearest, highest) = (Some(index), sure);
            }
        }
        nearest
    }

    /// Over all pairs of a member of `joined` and one of `group`.
    fn mean_cosine(&self, joined: &Joined, group: usize) -> f64 {
        let pairs = joined.size as f64 * self.groups[group].size as f64;
        dot(&joined.sum, &self.sums[group * self.dim..][..self.dim]) / pairs
    }

    fn join(&self, joined: &mut Joined, group: usize) {
        for (total, x) in joined.sum.iter_mut().zip(&self.sums[group * self.dim..][..self.dim]) {
            *total += x;
        }
        joined.size += self.groups[group].size;
        joined.groups.push(group);
    }

    fn find(&self, id: Id) -> Option<usize> {
        self.groups.iter().position(|group| group.id == id)
    }

    fn found(&mut self, id: Id) -> usize {
        self.groups.push(Group { id, size: 0, joined: 0 });
        self.sums.resize(self.sums.len() + self.dim, 0.0);
        self.groups.len() - 1
    }

    /// `older` takes the members of `younger`, which is no more. The others keep their order.
    fn merge(&mut self, older: usize, younger: usize) {
        let (before, from) = self.sums.split_at_mut(younger * self.dim);
        for (total, x) in before[older * self.dim..][..self.dim].iter_mut().zip(&*from) {
            *total += x;
        }
        self.sums.drain(younger * self.dim..(younger + 1) * self.dim);
        self.groups[older].size += self.groups.remove(younger).size;
    }
}

/// A face and the groups that it joins, as if they were one already.
struct Joined {
    sum: Vec<f64>,
    size: u64,
    groups: Vec<usize>,
}

/// Several partial sums: one would chain every addition to the one before it.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    const LANES: usize = 8;
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut sums = [0.0; LANES];
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f64>() + rest
}
