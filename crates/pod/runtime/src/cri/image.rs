//! ImageService.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use keelson_cri::v1::*;
use tonic::metadata::MetadataValue;
use tonic::{Request, Response, Status};

use super::{Answers, in_pieces, required, unknown};
use crate::Runtime;
use crate::containers::stats::filesystem;
use crate::images::registries::Credentials;
use crate::images::{Image as Stored, PullError};
use crate::runtime::now;

/// Where a call says that it wants an archive imported. A call's metadata is set by programs with access to the
/// runtime's socket only; nothing that a pod's author writes gets here.
const IMPORT: &str = "keelson-import-bin";

/// A call of PullImage that imports the images of an archive on the runtime's machine. The answer's `image_ref` has
/// their IDs, with commas between.
pub fn import_request(archive: &Path) -> Request<PullImageRequest> {
    let mut request = Request::new(PullImageRequest::default());
    let path = MetadataValue::from_bytes(archive.as_os_str().as_bytes());
    request.metadata_mut().insert_bin(IMPORT, path);
    request
}

impl Runtime {
    async fn import(&self, path: PathBuf) -> Result<Response<PullImageResponse>, Status> {
        let images = self.0.images.clone();
        let imported = tokio::task::spawn_blocking(move || images.import(&path))
            .await
            .map_err(|e| unknown(e.into()))?
            .map_err(unknown)?;
        let ids: Vec<&str> = imported.iter().map(|i| i.id.as_str()).collect();
        Ok(Response::new(PullImageResponse {
            image_ref: ids.join(","),
        }))
    }

    fn images_of(&self, filter: Option<ImageFilter>) -> Vec<Image> {
        let wanted = filter.and_then(|f| f.image).map(|s| s.image).unwrap_or_default();
        if wanted.is_empty() {
            return self.0.images.list().iter().map(|i| to_cri(i)).collect();
        }
        self.0.images.find(&wanted).iter().map(|i| to_cri(i)).collect()
    }
}

#[tonic::async_trait]
impl keelson_cri::ImageService for Runtime {
    async fn list_images(&self, request: Request<ListImagesRequest>) -> Result<Response<ListImagesResponse>, Status> {
        let images = self.images_of(request.into_inner().filter);
        Ok(Response::new(ListImagesResponse { images }))
    }

    type StreamImagesStream = Answers<StreamImagesResponse>;

    async fn stream_images(
        &self,
        request: Request<StreamImagesRequest>,
    ) -> Result<Response<Self::StreamImagesStream>, Status> {
        let images = self.images_of(request.into_inner().filter);
        Ok(Response::new(in_pieces(images, |images| StreamImagesResponse {
            images,
        })))
    }

    async fn image_status(
        &self,
        request: Request<ImageStatusRequest>,
    ) -> Result<Response<ImageStatusResponse>, Status> {
        let request = request.into_inner();
        let name = required(request.image, "image")?.image;
        let mut found = self.0.images.find(&name);
        if found.is_none() {
            self.0.images_ready().await;
            found = self.0.images.find(&name);
        }
        let mut info = std::collections::HashMap::new();
        if let (true, Some(image)) = (request.verbose, &found) {
            let config = self.0.images.config(&image.id).map_err(|e| unknown(e.into()))?;
            let config = String::from_utf8_lossy(&config);
            info.insert("info".to_owned(), format!("{{\"imageSpec\":{config}}}"));
        }
        Ok(Response::new(ImageStatusResponse {
            image: found.map(|i| to_cri(&i)),
            info,
        }))
    }

    async fn pull_image(&self, request: Request<PullImageRequest>) -> Result<Response<PullImageResponse>, Status> {
        if let Some(path) = request.metadata().get_bin(IMPORT) {
            let path = path.to_bytes().map_err(|e| Status::invalid_argument(e.to_string()))?;
            return self.import(PathBuf::from(std::ffi::OsStr::from_bytes(&path))).await;
        }
        let request = request.into_inner();
        let name = required(request.image, "image")?.image;
        let auth = request.auth.unwrap_or_default();
        let credentials = Credentials::from_parts(
            &auth.username,
            &auth.password,
            &auth.identity_token,
            &auth.auth,
            &auth.registry_token,
        )
        .map_err(|e| Status::invalid_argument(format!("failed to parse auth config: {e:#}")))?;
        self.0.images_ready().await;
        let image = self
            .0
            .images
            .pull(&name, credentials)
            .await
            .map_err(|error| match error {
                PullError::Invalid(m) => Status::invalid_argument(m),
                PullError::NotFound(m) => Status::not_found(m),
                PullError::Unauthorized(m) => Status::permission_denied(m),
                PullError::Unsigned(m) => Status::permission_denied(m),
                PullError::Failed(m) => Status::unknown(m),
            })?;
        Ok(Response::new(PullImageResponse {
            image_ref: image.id.clone(),
        }))
    }

    async fn remove_image(
        &self,
        request: Request<RemoveImageRequest>,
    ) -> Result<Response<RemoveImageResponse>, Status> {
        let name = required(request.into_inner().image, "image")?.image;
        let runtime = self.0.clone();
        tokio::task::spawn_blocking(move || runtime.images.remove(&name, &runtime.layers_in_use()))
            .await
            .map_err(|e| unknown(e.into()))?
            .map_err(|e| unknown(e.into()))?;
        Ok(Response::new(RemoveImageResponse {}))
    }

    async fn image_fs_info(&self, _: Request<ImageFsInfoRequest>) -> Result<Response<ImageFsInfoResponse>, Status> {
        let root = self.0.images.layers.root().to_path_buf();
        let (bytes, layers) = self.0.images.layers.usage().map_err(|e| unknown(e.into()))?;
        let containers = self.0.config.root.join("containers");
        let value = |value| Some(UInt64Value { value });
        let images = FilesystemUsage {
            timestamp: now(),
            fs_id: Some(FilesystemIdentifier {
                mountpoint: root.to_string_lossy().into_owned(),
            }),
            used_bytes: value(bytes),
            inodes_used: value(layers),
        };
        let containers = tokio::task::spawn_blocking(move || {
            // Root file systems are mounted below; only what containers have written counts.
            let mut sum = filesystem(std::path::Path::new("/nonexistent"), &containers);
            let (mut bytes, mut inodes) = (0, 0);
            for entry in std::fs::read_dir(&containers).into_iter().flatten().flatten() {
                let one = filesystem(&entry.path().join("upper"), &containers);
                bytes += one.used_bytes.map_or(0, |v| v.value);
                inodes += one.inodes_used.map_or(0, |v| v.value);
            }
            sum.used_bytes = Some(UInt64Value { value: bytes });
            sum.inodes_used = Some(UInt64Value { value: inodes });
            sum
        })
        .await
        .map_err(|e| unknown(e.into()))?;
        Ok(Response::new(ImageFsInfoResponse {
            image_filesystems: vec![images],
            container_filesystems: vec![containers],
        }))
    }
}

fn to_cri(image: &Stored) -> Image {
    let user = image.execution.user.split(':').next().unwrap_or_default();
    let uid = if user.is_empty() { Some(0) } else { user.parse().ok() };
    Image {
        id: image.id.clone(),
        repo_tags: image.tags.iter().cloned().collect(),
        repo_digests: image.digests.iter().cloned().collect(),
        size: image.size,
        uid: uid.map(|value| Int64Value { value }),
        username: if uid.is_some() { String::new() } else { user.to_owned() },
        spec: Some(ImageSpec {
            image: image.id.clone(),
            ..ImageSpec::default()
        }),
        pinned: image.pinned,
    }
}
