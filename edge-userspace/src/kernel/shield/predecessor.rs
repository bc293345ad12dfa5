//! Shields of other layouts. Their blocks cannot be read, but the operator's blocks are on disk. They
//! continue to drop packets until this shield has the same blocks; then their links switch to this program,
//! each in one step.

use std::{fs, path::Path};

use aya::programs::links::FdLink;
use tracing::info;

use super::links::{Attachment, ShieldLinks};
use crate::kernel::{KernelError, interfaces, pin::removed, pin_name};

impl ShieldLinks {
    /// Takes the place of the shields of other layouts. To be called when what is to be blocked is in the maps.
    pub(in crate::kernel) fn succeed(&mut self) -> Result<(), KernelError> {
        for directory in std::mem::take(&mut self.predecessors) {
            let error = |source| KernelError::File { call: "reading", path: directory.clone(), source };
            for pin_name::Found { path, device } in pin_name::links(&directory, None).map_err(error)? {
                self.replace(device, &path)?;
            }
            removed(&directory, fs::remove_dir_all(&directory))?;
            if let Some(layout) = directory.parent() {
                // Unless flows are left there.
                let _ = fs::remove_dir(layout);
            }
            info!(directory = %directory.display(), "took the place of another version's shield");
        }
        Ok(())
    }

    fn replace(&mut self, device: u32, old: &Path) -> Result<(), KernelError> {
        let found = interfaces()?.into_iter().find(|found| found.index == device);
        if let Some(found) = found
            && let Some((hook, link)) = self.take_over(found.framing, old)
        {
            // The other version's link had the XDP hook, so that this one may stand in tc already.
            if let Some(Attachment { pin, .. }) = self.attached.remove(&device) {
                removed(&pin, fs::remove_file(&pin))?;
            }
            let pin = self.directory.join(pin_name::link(device, None));
            let pinned = link
                .pin(&pin)
                .map_err(|source| KernelError::Pin { path: pin.clone(), source: Box::new(source) })?;
            self.attached.insert(device, Attachment { hook, pin, _link: FdLink::from(pinned) });
            // Until it is said which are.
            if !self.watched.contains(&found) {
                self.watched.push(found);
            }
        }
        removed(old, fs::remove_file(old))
    }
}
