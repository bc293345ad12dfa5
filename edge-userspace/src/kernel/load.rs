//! Loading an object with its maps pinned, or with the maps that an earlier daemon pinned.

use std::path::Path;

use aya::{
    Ebpf, EbpfLoader, VerifierLogLevel,
    maps::{Map, MapError, MapInfo, MapType},
};

use super::KernelError;

/// A map as this version knows it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    name: &'static str,
    kind: MapType,
    key: usize,
    value: usize,
}

impl Shape {
    /// A map with keys `K` and values `V`.
    pub(super) const fn of<K, V>(name: &'static str, kind: MapType) -> Self {
        Self { name, kind, key: size_of::<K>(), value: size_of::<V>() }
    }

    /// A ring buffer, which has neither.
    pub(super) const fn ring(name: &'static str) -> Self {
        Self { name, kind: MapType::RingBuf, key: 0, value: 0 }
    }

    pub(super) const fn name(&self) -> &'static str {
        self.name
    }

    pub(super) fn fits(&self, found: &MapInfo) -> bool {
        // aya's MapType has no equality; its discriminants are the kernel's numbers.
        found.map_type().is_ok_and(|kind| kind as u32 == self.kind as u32)
            && found.key_size() as usize == self.key
            && found.value_size() as usize == self.value
    }
}

/// Creates the maps of an object pinned in `directory`, or takes those that are pinned there already, if
/// they have the shape that this version knows. Programs are parsed, not yet loaded.
pub(super) fn load(
    object: &'static str,
    bytes: &[u8],
    directory: &Path,
    maps: &[Shape],
) -> Result<Ebpf, KernelError> {
    let mut loader = EbpfLoader::new();
    loader.verifier_log_level(VerifierLogLevel::STATS);
    for shape in maps {
        let path = directory.join(shape.name);
        if path.exists() {
            let found = MapInfo::from_pin(&path).map_err(map("opening", shape.name))?;
            if !shape.fits(&found) {
                return Err(KernelError::OtherLayout { path });
            }
        }
        loader.map_pin_path(shape.name, path);
    }
    loader.load(bytes).map_err(|source| KernelError::Object { object, source: Box::new(source) })
}

/// Takes a map out of a loaded object. To be called after every program is loaded: map descriptors are
/// written into programs at load.
pub(super) fn take<M>(ebpf: &mut Ebpf, object: &'static str, name: &'static str) -> Result<M, KernelError>
where
    M: TryFrom<Map, Error = MapError>,
{
    let found = ebpf.take_map(name).ok_or(KernelError::Incomplete { object, part: name })?;
    found.try_into().map_err(map("taking", name))
}

/// Wraps what went wrong with a map.
pub(super) fn map(call: &'static str, name: &'static str) -> impl FnOnce(MapError) -> KernelError {
    move |source| KernelError::Map { call, map: name, source: Box::new(source) }
}
