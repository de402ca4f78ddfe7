//! The folder of named people, and how its photos are fed to the pipeline.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

/// What `capture` takes for a picture, by the file's extension.
const EXTENSIONS: [&str; 4] = ["jpg", "jpeg", "png", "webp"];

/// Who is on which photo.
#[derive(Debug)]
pub(crate) struct Labelled {
    /// The folders' names.
    pub(crate) people: Vec<String>,
    /// In the order of their names.
    pub(crate) photos: Vec<Photo>,
    /// What was left out: pictures beside or below the people's folders, files that are no pictures by their extension.
    pub(crate) left_out: usize,
}

/// A labelled photo.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Photo {
    /// `NAME/photo.jpg`.
    pub(crate) name: String,
    /// Whose it is: a place in `people`.
    pub(crate) person: usize,
    path: PathBuf,
}

impl Labelled {
    /// Reads DIR/NAME/*.jpg (png, webp): hidden ones are passed over, as `capture` does.
    pub(crate) fn read(dir: &Path) -> anyhow::Result<Self> {
        let shown = dir.display();
        if !dir.is_dir() {
            bail!("cannot measure on {shown}: there is no such folder; give a folder of named people, DIR/NAME/*.jpg");
        }
        let mut labelled = Self { people: Vec::new(), photos: Vec::new(), left_out: 0 };
        for path in entries(dir)? {
            if path.is_dir() {
                labelled.add_person(&path)?;
            } else {
                labelled.left_out += 1;
            }
        }
        if labelled.people.is_empty() {
            bail!(
                "cannot measure on {shown}: it has no folder with photos in it; each person's photos have to be in a folder of \
                 that name, DIR/NAME/*.jpg"
            );
        }
        labelled.photos.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(labelled)
    }

    fn add_person(&mut self, folder: &Path) -> anyhow::Result<()> {
        let (photos, others): (Vec<_>, Vec<_>) = entries(folder)?.into_iter().partition(|path| is_photo(path));
        self.left_out += others.len();
        if photos.is_empty() {
            return Ok(());
        }
        let person = self.people.len();
        let name = file_name(folder);
        let photo = |path: PathBuf| Photo { name: format!("{name}/{}", file_name(&path)), person, path };
        self.photos.extend(photos.into_iter().map(photo));
        self.people.push(name);
        Ok(())
    }

    /// Makes `dir` a folder that `capture`, which reads in the order of names, reads in `order`: `NNNNNN/NAME/photo.jpg`, a link
    /// to the photo, where N is its place in `photos` for [`Self::place`] by which it is known again.
    pub(crate) fn link_into(&self, dir: &Path, order: &[usize]) -> anyhow::Result<()> {
        for (turn, &place) in order.iter().enumerate() {
            let photo = &self.photos[place];
            let target = std::fs::canonicalize(&photo.path).or_else(|_| std::path::absolute(&photo.path))?;
            let person = photo.path.parent().and_then(Path::file_name).unwrap_or_default();
            let folder = dir.join(format!("{turn:07}-{place:07}")).join(person);
            std::fs::create_dir_all(&folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
            let link = folder.join(photo.path.file_name().unwrap_or_default());
            std::os::unix::fs::symlink(&target, &link).with_context(|| format!("cannot make {}", link.display()))?;
        }
        Ok(())
    }

    /// The place in `photos` of an item that `capture` read out of a folder of links.
    pub(crate) fn place(&self, item: &str) -> Option<usize> {
        let (_, place) = item.split_once('/')?.0.split_once('-')?;
        place.parse().ok().filter(|&place| place < self.photos.len())
    }
}

/// The entries of a folder in the order of their names, hidden ones left out.
fn entries(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let cannot_read = || format!("cannot read the folder {}", dir.display());
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(dir).with_context(cannot_read)? {
        let path = entry.with_context(cannot_read)?.path();
        if path.file_name().is_some_and(|name| !name.as_bytes().starts_with(b".")) {
            entries.push(path);
        }
    }
    entries.sort_unstable();
    Ok(entries)
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into()
}

/// By the extension. What is not there, a dangling link, is taken: the pipeline says so. What is there but no file is not.
fn is_photo(path: &Path) -> bool {
    let extension = path.extension().and_then(OsStr::to_str);
    let is_named_so =
        extension.is_some_and(|extension| EXTENSIONS.iter().any(|known| known.eq_ignore_ascii_case(extension)));
    is_named_so && path.metadata().map_or(true, |metadata| metadata.is_file())
}

/// The places 0..count in an order that only the seed decides, the same on every machine: Fisher and Yates' shuffle (Knuth,
/// "The Art of Computer Programming" 2, algorithm 3.4.2 P).
pub(crate) fn shuffled(count: usize, seed: u64) -> Vec<usize> {
    let mut state = seed;
    let mut order: Vec<usize> = (0..count).collect();
    for left in (2..=count).rev() {
        // The high half of the product: a number below `left`, even to within 2⁻⁶⁴ · left.
        let drawn = (u128::from(split_mix(&mut state)) * left as u128) >> 64;
        order.swap(left - 1, drawn as usize);
    }
    order
}

/// `SplitMix64` (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014; constants as in
/// <https://prng.di.unimi.it/splitmix64.c>).
fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn folder(files: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, file).unwrap();
        }
        dir
    }

    #[test]
    fn people_are_folders_and_photos_are_pictures_in_them() {
        let dir =
            folder(&["Bob/2.JPG", "Bob/1.png", "Ada/a.webp", "Ada/notes.txt", "Ada/old/b.jpg", ".git/c.jpg", "x.jpg"]);
        fs::create_dir(dir.path().join("Nobody")).unwrap();
        let labelled = Labelled::read(dir.path()).unwrap();
        assert_eq!(labelled.people, ["Ada", "Bob"]);
        let photos: Vec<_> = labelled.photos.iter().map(|photo| (photo.name.as_str(), photo.person)).collect();
        assert_eq!(photos, [("Ada/a.webp", 0), ("Bob/1.png", 1), ("Bob/2.JPG", 1)]);
        assert_eq!(labelled.left_out, 3);
    }

    #[test]
    fn links_are_known_again_and_read_in_the_order_given() {
        let dir = folder(&["Ada/a.jpg", "Bob/b.jpg", "Bob/c.jpg"]);
        let labelled = Labelled::read(dir.path()).unwrap();
        let links = tempfile::tempdir().unwrap();
        labelled.link_into(links.path(), &[2, 0, 1]).unwrap();
        let mut items = ["0000000-0000002/Bob/c.jpg", "0000001-0000000/Ada/a.jpg", "0000002-0000001/Bob/b.jpg"];
        let read = |item: &&str| fs::read_to_string(links.path().join(item)).unwrap();
        assert_eq!(items.iter().map(read).collect::<Vec<_>>(), ["Bob/c.jpg", "Ada/a.jpg", "Bob/b.jpg"]);
        items.sort_unstable();
        assert_eq!(items.iter().filter_map(|item| labelled.place(item)).collect::<Vec<_>>(), [2, 0, 1]);
        assert_eq!(labelled.place("0000000-0000003/Bob/d.jpg"), None);
        assert_eq!(labelled.place("Bob/d.jpg"), None);
    }

    #[test]
    fn a_dangling_link_is_a_photo_and_a_folder_is_none() {
        let dir = folder(&["Ada/b.jpg/c.txt"]);
        std::os::unix::fs::symlink("gone.jpg", dir.path().join("Ada/a.jpg")).unwrap();
        let labelled = Labelled::read(dir.path()).unwrap();
        assert_eq!(labelled.photos.len(), 1);
        let links = tempfile::tempdir().unwrap();
        labelled.link_into(links.path(), &[0]).unwrap();
        assert!(links.path().join("0000000-0000000/Ada/a.jpg").is_symlink());
    }

    #[test]
    fn what_is_no_folder_of_people_is_refused_with_what_to_give() {
        let refused = |dir: &Path| Labelled::read(dir).unwrap_err().to_string();
        assert!(refused(Path::new("/no/such")).contains("there is no such folder; give a folder of named people"));
        let flat = folder(&["a.jpg", "b.jpg"]);
        assert!(refused(flat.path()).contains("it has no folder with photos in it"));
    }

    #[test]
    fn a_seed_decides_the_order() {
        let order = shuffled(100, 1);
        assert_eq!(order, shuffled(100, 1));
        assert_ne!(order, shuffled(100, 2));
        assert_ne!(order, (0..100).collect::<Vec<_>>());
        let mut sorted = order;
        sorted.sort_unstable();
        assert_eq!(sorted, (0..100).collect::<Vec<_>>());
        assert!(shuffled(0, 1).is_empty());
    }

    #[test]
    fn the_generator_is_the_published_one() {
        // The first numbers for the seed 1234567, as widely printed for this generator.
        let mut state = 1_234_567;
        assert_eq!(split_mix(&mut state), 6_457_827_717_110_365_317);
        assert_eq!(split_mix(&mut state), 3_203_168_211_198_807_973);
    }
}
