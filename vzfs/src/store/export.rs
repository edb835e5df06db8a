//! A VE as the entries of a tar. It is here because neither volumes nor archives know the other.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io;

use crate::archive::{ArchiveError, TarEntry, TarSource};
use crate::types::{Attr, FileKind, Ino};
use crate::volume::{Volume, VolumeError};

/// All that a VE shows. One that changes meanwhile is seen as it is when each file is reached.
pub(super) struct VeSource<'v>(pub &'v Volume);

/// Why the walk stopped.
enum Stop {
    Volume(VolumeError),
    Archive(Box<ArchiveError>),
}

impl From<VolumeError> for Stop {
    fn from(error: VolumeError) -> Stop {
        Stop::Volume(error)
    }
}

impl TarSource for VeSource<'_> {
    fn visit(
        &self,
        emit: &mut dyn FnMut(TarEntry<'_>) -> Result<(), ArchiveError>,
    ) -> Result<(), ArchiveError> {
        // First names of the inodes that have several.
        let mut first_names: HashMap<Ino, Vec<u8>> = HashMap::new();
        let walk = self.0.export_source();
        let walked = walk.for_each::<Stop>(&mut |path, ino, attr| {
            let several = attr.kind != FileKind::Dir && attr.nlink > 1;
            let first = first_names.get(&ino).filter(|_| several).cloned();
            self.entry(path, ino, attr, first.as_deref(), emit)?;
            if several && first.is_none() {
                first_names.insert(ino, path.to_owned());
            }
            Ok(())
        });
        walked.map_err(|stop| match stop {
            Stop::Volume(error) => ArchiveError::Provider(Box::new(error)),
            Stop::Archive(error) => *error,
        })
    }
}

impl VeSource<'_> {
    fn entry(
        &self,
        path: &[u8],
        ino: Ino,
        attr: &Attr,
        hard_link: Option<&[u8]>,
        emit: &mut dyn FnMut(TarEntry<'_>) -> Result<(), ArchiveError>,
    ) -> Result<(), Stop> {
        let volume = self.0;
        let symlink = if attr.kind == FileKind::Symlink { volume.read_link(ino)? } else { Vec::new() };
        let mut xattrs = Vec::new();
        for name in volume.xattr_names(ino)? {
            match volume.xattr(ino, &name) {
                Ok(value) => xattrs.push((Cow::Owned(name), Cow::Owned(value))),
                // It was removed between the list and the look.
                Err(VolumeError::NoData) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let open = || volume.open_for_reading(ino).map_err(io::Error::other);
        let open: Option<&dyn Fn() -> _> = if attr.kind == FileKind::File { Some(&open) } else { None };
        emit(TarEntry { path, attr, symlink: &symlink, xattrs, hard_link, open, layer_mark: None })
            .map_err(|error| Stop::Archive(error.into()))
    }
}
