//! What of a person's file or folder is published: which files, under which paths.
//!
//! It opens nothing and hashes nothing. Hidden files and folders (`.git`, `.DS_Store`, …) are left out; a symbolic link is followed
//! only to a file inside the folder.
//!
//! Invariant: every listed file lies within the folder that was named, and no two paths differ only by case.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use cairn_protocol::{limits::MANIFEST_FILES_MAX, name::FilePath};

/// One file to publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceFile {
    /// Where it is.
    pub source: PathBuf,
    /// What it is called in the manifest.
    pub path: FilePath,
    /// Its size when it was listed.
    pub size: u64,
}

/// Why a file or folder can't be published as it is.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// Nothing is there, or it can't be read.
    #[error("{}: {error}", path.display())]
    Io {
        /// What was looked at.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// There is no file to publish.
    #[error("{} holds no file to publish (hidden files are left out)", .0.display())]
    Empty(PathBuf),
    /// Too many files for one manifest.
    #[error("{} holds more than {MANIFEST_FILES_MAX} files", .0.display())]
    TooMany(PathBuf),
    /// A symbolic link points out of the folder, to a folder or to nothing.
    #[error("{} is a symbolic link to something that is not a file in the published folder", .0.display())]
    Link(PathBuf),
    /// Something that is neither file nor folder: a socket, a device.
    #[error("{} is neither a file nor a folder", .0.display())]
    Special(PathBuf),
    /// A name that a manifest may not hold.
    #[error("{}: the name can't be published: {reason}", path.display())]
    Name {
        /// The file.
        path: PathBuf,
        /// The rule it breaks.
        reason: String,
    },
    /// Two names that differ only by case would overwrite each other on some systems.
    #[error("{first} and {second} differ only by case")]
    Collision {
        /// One.
        first: FilePath,
        /// The other.
        second: FilePath,
    },
}

/// Lists what of `source` is published, in order of path. A single file is published under its own name. Blocks.
pub fn list(source: &Path) -> Result<Vec<SourceFile>, FolderError> {
    let root = source.canonicalize().map_err(|error| io_error(source, error))?;
    let mut files = Vec::new();
    if root.is_dir() {
        let mut folders = vec![(root.clone(), String::new())];
        while let Some((folder, prefix)) = folders.pop() {
            list_folder(&root, &folder, &prefix, &mut folders, &mut files)?;
        }
    } else {
        let name = source.file_name().ok_or_else(|| FolderError::Special(source.to_owned()))?;
        files.push(file(&root, text(source, name)?)?);
    }
    if files.is_empty() {
        return Err(FolderError::Empty(source.to_owned()));
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    refuse_collisions(&files)?;
    Ok(files)
}

fn list_folder(
    root: &Path,
    folder: &Path,
    prefix: &str,
    folders: &mut Vec<(PathBuf, String)>,
    files: &mut Vec<SourceFile>,
) -> Result<(), FolderError> {
    for entry in fs::read_dir(folder).map_err(|error| io_error(folder, error))? {
        let entry = entry.map_err(|error| io_error(folder, error))?;
        let path = entry.path();
        let name = entry.file_name();
        if name.as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let name = format!("{prefix}{}", text(&path, &name)?);
        let kind = entry.file_type().map_err(|error| io_error(&path, error))?;
        if kind.is_dir() {
            folders.push((path, format!("{name}/")));
            continue;
        }
        let target = if kind.is_symlink() { link_target(root, &path)? } else { path };
        files.push(file(&target, &name)?);
        if files.len() > MANIFEST_FILES_MAX {
            return Err(FolderError::TooMany(root.to_owned()));
        }
    }
    Ok(())
}

/// The file that a link means, if it lies in the published folder.
fn link_target(root: &Path, link: &Path) -> Result<PathBuf, FolderError> {
    let target = link.canonicalize().map_err(|_| FolderError::Link(link.to_owned()))?;
    let inside = target.starts_with(root) && target.is_file();
    if inside { Ok(target) } else { Err(FolderError::Link(link.to_owned())) }
}

fn file(source: &Path, path: &str) -> Result<SourceFile, FolderError> {
    let metadata = fs::metadata(source).map_err(|error| io_error(source, error))?;
    if !metadata.is_file() {
        return Err(FolderError::Special(source.to_owned()));
    }
    let path = path.parse::<FilePath>().map_err(|error| name_error(source, error))?;
    Ok(SourceFile { source: source.to_owned(), path, size: metadata.len() })
}

fn text<'a>(path: &Path, name: &'a std::ffi::OsStr) -> Result<&'a str, FolderError> {
    name.to_str().ok_or_else(|| name_error(path, "it is not valid Unicode"))
}

fn refuse_collisions(files: &[SourceFile]) -> Result<(), FolderError> {
    let mut seen = BTreeMap::new();
    for file in files {
        if let Some(first) = seen.insert(file.path.folded(), &file.path) {
            return Err(FolderError::Collision { first: first.clone(), second: file.path.clone() });
        }
    }
    Ok(())
}

fn io_error(path: &Path, error: io::Error) -> FolderError {
    FolderError::Io { path: path.to_owned(), error }
}

fn name_error(path: &Path, reason: impl ToString) -> FolderError {
    FolderError::Name { path: path.to_owned(), reason: reason.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(files: &[SourceFile]) -> Vec<&str> {
        files.iter().map(|file| file.path.as_str()).collect()
    }

    #[test]
    fn a_folder_lists_its_files_in_order_without_hidden_ones() {
        let folder = tempfile::tempdir().unwrap();
        for path in ["b.bin", "a/deep/c.txt", ".git/config", ".DS_Store", "a/.hidden", "ünïcode ☃.txt", "empty"] {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let files = list(folder.path()).unwrap();
        assert_eq!(names(&files), ["a/deep/c.txt", "b.bin", "empty", "ünïcode ☃.txt"]);
    }

    #[test]
    fn a_single_file_is_published_under_its_name() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("model.gguf"), "abc").unwrap();
        let files = list(&folder.path().join("model.gguf")).unwrap();
        assert_eq!(names(&files), ["model.gguf"]);
        assert_eq!(files[0].size, 3);
    }

    #[cfg(unix)]
    #[test]
    fn a_link_out_of_the_folder_is_refused_and_one_within_is_followed() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("real.txt"), "abc").unwrap();
        std::os::unix::fs::symlink("real.txt", folder.path().join("inside.txt")).unwrap();
        assert_eq!(names(&list(folder.path()).unwrap()), ["inside.txt", "real.txt"]);
        std::os::unix::fs::symlink("/etc/hostname", folder.path().join("outside.txt")).unwrap();
        assert!(matches!(list(folder.path()), Err(FolderError::Link(_))));
    }

    #[cfg(unix)]
    #[test]
    fn a_link_to_a_folder_is_refused_even_within() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("real")).unwrap();
        fs::write(folder.path().join("real/a.txt"), "abc").unwrap();
        std::os::unix::fs::symlink("real", folder.path().join("again")).unwrap();
        assert!(matches!(list(folder.path()), Err(FolderError::Link(_))));
    }

    #[test]
    fn a_folder_without_visible_files_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(".hidden"), "").unwrap();
        assert!(matches!(list(folder.path()), Err(FolderError::Empty(_))));
        assert!(matches!(list(&folder.path().join("nowhere")), Err(FolderError::Io { .. })));
    }
}
