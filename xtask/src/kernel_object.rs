//! What a compiled object offers to the kernel: its programs and maps by section and name.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context, Result, ensure};
use object::{Object, ObjectSection, ObjectSymbol, SectionKind};

/// A section and the name of a program, a map or the licence in it.
pub(crate) type Entry = (String, String);

/// All programs and maps of the object in `file`, which must carry BTF.
pub(crate) fn entries(file: &Path) -> Result<BTreeSet<Entry>> {
    let bytes = fs::read(file).with_context(|| file.display().to_string())?;
    let object = object::File::parse(&*bytes).with_context(|| file.display().to_string())?;
    ensure!(object.section_by_name(".BTF").is_some(), "{}: no BTF", file.display());
    let mut entries = BTreeSet::new();
    for symbol in object.symbols().filter(|symbol| symbol.is_global() && !symbol.is_undefined()) {
        let Some(index) = symbol.section_index() else {
            continue;
        };
        let section = object.section_by_index(index)?;
        // Functions that are only called, memcpy among them, are the compiler's affair.
        if section.kind() == SectionKind::Text && section.name()? == ".text" {
            continue;
        }
        entries.insert((section.name()?.to_owned(), symbol.name()?.to_owned()));
    }
    ensure!(!entries.is_empty(), "{}: no program in it", file.display());
    Ok(entries)
}

/// Says which entries only one of two objects has.
pub(crate) fn ensure_same(one: &BTreeSet<Entry>, other: &BTreeSet<Entry>) -> Result<()> {
    let difference: Vec<_> = one.symmetric_difference(other).collect();
    ensure!(difference.is_empty(), "only one of the two objects has {difference:?}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> BTreeSet<Entry> {
        names.iter().map(|name| ("cgroup/connect4".to_owned(), (*name).to_owned())).collect()
    }

    #[test]
    fn a_program_that_one_object_lacks_is_named() {
        ensure_same(&set(&["a", "b"]), &set(&["b", "a"])).unwrap();
        let error = ensure_same(&set(&["a", "b"]), &set(&["a"])).unwrap_err().to_string();
        assert!(error.contains("\"b\"") && !error.contains("\"a\""), "{error}");
    }

    #[test]
    fn a_file_that_is_no_object_is_an_error() {
        let error = entries(Path::new("Cargo.toml")).unwrap_err();
        assert!(format!("{error:#}").starts_with("Cargo.toml: "), "{error:#}");
    }
}
