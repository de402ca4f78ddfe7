use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use causeway_bus::names;
use causeway_pipelines::{Pipeline, TestPerson};
use causeway_schemas::Person;
use causeway_stage::OnceInput;

use super::messages::SPACE;
use crate::people::{Examined, Examiner, photos_in};

/// Makes the gallery of a test. A photo is examined once a run, whatever many tests name it.
pub(super) struct Gallery<'a> {
    pipeline: &'a Pipeline,
    models: &'a Path,
    examiner: Option<Examiner>,
    vectors: HashMap<PathBuf, Vec<Vec<f32>>>,
}

impl<'a> Gallery<'a> {
    pub(super) fn new(pipeline: &'a Pipeline, models: &'a Path) -> Self {
        Self { pipeline, models, examiner: None, vectors: HashMap::new() }
    }

    /// The entries of the table `people`.
    pub(super) fn entries(&mut self, people: &BTreeMap<String, TestPerson>) -> anyhow::Result<Vec<OnceInput>> {
        let mut entries = Vec::new();
        for (name, person) in people {
            let (vectors, space) = self.vectors(person).with_context(|| format!("cannot enrol {name}"))?;
            let photos = (1..=vectors.len()).map(|place| format!("photo {place}")).collect();
            let person = Person { name: name.clone(), space, vectors, photos, enrolled_at: 0 };
            let value = serde_json::to_value(person)?;
            entries.push(OnceInput::Entry { table: names::PEOPLE.into(), key: names::token(name), value });
        }
        Ok(entries)
    }

    fn vectors(&mut self, person: &TestPerson) -> anyhow::Result<(Vec<Vec<f32>>, String)> {
        match person {
            TestPerson::Vectors { vectors, space } => {
                let vectors = vectors.iter().map(|vector| vector.iter().map(|&number| number as f32).collect());
                Ok((vectors.collect(), space.clone().unwrap_or_else(|| SPACE.into())))
            }
            TestPerson::Photos(places) => {
                let mut all = Vec::new();
                for place in places {
                    all.extend(self.of_photos(place)?);
                }
                Ok((all, self.examiner()?.space().into()))
            }
        }
    }

    fn of_photos(&mut self, place: &Path) -> anyhow::Result<Vec<Vec<f32>>> {
        if let Some(known) = self.vectors.get(place) {
            return Ok(known.clone());
        }
        let mut vectors = Vec::new();
        for photo in photos_in(place)? {
            match self.examiner()?.examine(&photo, None)? {
                Examined::Face { vector, .. } => vectors.push(vector),
                Examined::Nothing(verdict) => bail!("{} gives no face: {verdict}", photo.path.display()),
            }
        }
        self.vectors.insert(place.into(), vectors.clone());
        Ok(vectors)
    }

    fn examiner(&mut self) -> anyhow::Result<&mut Examiner> {
        if self.examiner.is_none() {
            self.examiner = Some(Examiner::new(self.pipeline, self.models)?);
        }
        self.examiner.as_mut().context("the examiner was just made")
    }
}
