//! Image volumes: the runtime has the files and mounts them; here they only have a place among a pod's volumes.

use super::Tools;
use super::kind::{Ask, Failure, Kind, Mounted};
use std::path::PathBuf;

pub struct Image;

const NAME: &str = "image";

#[tonic::async_trait]
impl Kind for Image {
    fn name(&self) -> &'static str {
        NAME
    }

    fn serves(&self, ask: &Ask) -> bool {
        ask.volume.image.is_some()
    }

    async fn mount(&self, _: &Tools, ask: &Ask) -> Result<Mounted, Failure> {
        Ok(Mounted {
            path: None,
            ..Mounted::at(NAME, ask, PathBuf::new()).read_only()
        })
    }
}
