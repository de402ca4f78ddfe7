use std::collections::{BTreeMap, HashMap};

use anyhow::{Context as _, bail, ensure};
use causeway_schemas::Person;
use causeway_stage::Table;

/// An embedding space and the length of its vectors.
type SpaceKey = (String, usize);

/// Everybody who is known, as vectors to compare with: the same on every replica that has seen the same revision.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Gallery {
    spaces: BTreeMap<SpaceKey, Space>,
    /// Where the person of a key is.
    keys: HashMap<String, SpaceKey>,
    revision: u64,
}

/// The nearest person.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Match<'a> {
    /// The person's name.
    pub name: &'a str,
    /// The highest cosine over the person's vectors.
    pub score: f32,
    /// The highest cosine over the vectors of all others; `None` when there is no other.
    pub runner_up: Option<f32>,
}

impl Match<'_> {
    /// How far the nearest is ahead of the next other one; `score` when there is no other.
    pub fn margin(&self) -> f32 {
        self.score - self.runner_up.unwrap_or(0.0)
    }
}

/// The persons of one embedding space, their vectors in one contiguous matrix.
#[derive(Debug, Clone, PartialEq)]
struct Space {
    dim: usize,
    persons: Vec<Enrolled>,
    /// The unit vectors of the persons in their order, `dim` numbers a vector.
    vectors: Vec<f32>,
}

#[derive(Debug, Clone, PartialEq)]
struct Enrolled {
    key: String,
    name: String,
    /// How many rows of the matrix are this person's.
    vectors: usize,
}

impl Gallery {
    /// The highest revision seen, removals included.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// How many persons it has: keys, over all spaces.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether nobody is known.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The person nearest to the unit vector `face` of the embedding space `space`; the first by name of equally near ones.
    /// `None` when nobody of that space is known.
    pub fn nearest(&self, space: &str, face: &[f32]) -> Option<Match<'_>> {
        self.spaces.get(&(space.to_owned(), face.len()))?.nearest(face)
    }

    fn forget(&mut self, key: &str) {
        let Some(at) = self.keys.remove(key) else { return };
        let Some(space) = self.spaces.get_mut(&at) else { return };
        space.remove(key);
        if space.persons.is_empty() {
            self.spaces.remove(&at);
        }
    }
}

impl Table for Gallery {
    /// An entry that cannot be read takes the one before it away all the same: a replica that starts later sees only the
    /// newest, and the same revision has to be the same gallery everywhere.
    fn put(&mut self, key: &str, value: &[u8], revision: u64) -> anyhow::Result<()> {
        self.remove(key, revision);
        let Person { name, space, vectors, .. } = serde_json::from_slice(value).context("cannot read the person")?;
        let enrol = || {
            ensure!(!name.is_empty(), "it has no name");
            let dim = vectors.first().context("it has no vector")?.len();
            let rows = vectors.iter().enumerate().map(|(index, vector)| {
                ensure!(vector.len() == dim, "vector {index} has {} numbers, vector 0 has {dim}", vector.len());
                let mut vector = vector.clone();
                normalise(&mut vector).map_err(|why| anyhow::anyhow!("vector {index}: {why}"))?;
                Ok(vector)
            });
            Ok((dim, rows.collect::<anyhow::Result<Vec<_>>>()?.concat()))
        };
        match enrol() {
            Ok((dim, rows)) => {
                let person = Enrolled { key: key.into(), name, vectors: vectors.len() };
                let at = (space, dim);
                self.keys.insert(key.into(), at.clone());
                self.spaces.entry(at).or_insert_with(|| Space::new(dim)).insert(person, &rows);
                Ok(())
            }
            Err(why) => bail!("cannot enrol the person `{name}`: {why}"),
        }
    }

    fn remove(&mut self, key: &str, revision: u64) {
        self.revision = self.revision.max(revision);
        self.forget(key);
    }
}

impl Space {
    fn new(dim: usize) -> Self {
        Self { dim, persons: Vec::new(), vectors: Vec::new() }
    }

    fn insert(&mut self, person: Enrolled, rows: &[f32]) {
        self.persons.push(person);
        self.vectors.extend_from_slice(rows);
    }

    fn remove(&mut self, key: &str) {
        let Some(index) = self.persons.iter().position(|person| person.key == key) else { return };
        let before: usize = self.persons[..index].iter().map(|person| person.vectors).sum();
        let person = self.persons.remove(index);
        self.vectors.drain(before * self.dim..(before + person.vectors) * self.dim);
    }

    fn nearest(&self, face: &[f32]) -> Option<Match<'_>> {
        let mut cosines = self.vectors.chunks_exact(self.dim).map(|vector| dot(face, vector));
        let scored = self.persons.iter().map(|person| {
            let score = cosines.by_ref().take(person.vectors).fold(f32::NEG_INFINITY, f32::max);
            // Rounding may leave a cosine a trifle outside.
            (&person.name[..], score.clamp(-1.0, 1.0))
        });
        let mut nearest: Option<Match<'_>> = None;
        for (name, score) in scored {
            nearest = Some(match nearest {
                None => Match { name, score, runner_up: None },
                // The same person under another key is no other person.
                Some(best) if best.name == name => Match { score: best.score.max(score), ..best },
                Some(best) if score.total_cmp(&best.score).then_with(|| best.name.cmp(name)).is_gt() => {
                    Match { name, score, runner_up: Some(best.score) }
                }
                Some(best) => Match { runner_up: Some(best.runner_up.map_or(score, |next| next.max(score))), ..best },
            });
        }
        nearest
    }
}

/// A unit vector may be this far from length 1 and stays as it is: what f32 rounding does, and more.
const LENGTH_TOLERANCE: f64 = 1e-3;

/// Gives the vector length 1, or says why it has no direction.
pub(crate) fn normalise(vector: &mut [f32]) -> Result<(), String> {
    let length = vector.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
    if !length.is_finite() || length == 0.0 {
        return Err(format!("{} numbers of length {length} have no direction", vector.len()));
    }
    if (length - 1.0).abs() > LENGTH_TOLERANCE {
        for x in vector {
            *x = (f64::from(*x) / length) as f32;
        }
    }
    Ok(())
}

/// Several partial sums: one would chain every addition to the one before it.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 16;
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut sums = [0.0; LANES];
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}
