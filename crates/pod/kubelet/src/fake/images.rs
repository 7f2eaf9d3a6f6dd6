//! Images of the fake runtime: every pull succeeds at once, unless the name says otherwise: `missing/...` isn't there,
//! `private/...` wants the user `u`.

use super::FakeRuntime;
use futures::stream::BoxStream;
use keelson_cri::ImageService;
use keelson_cri::v1 as cri;
use tonic::{Request, Response, Status};

fn image(name: &str) -> cri::Image {
    cri::Image {
        id: name.to_owned(),
        repo_tags: vec![name.to_owned()],
        size: 1 << 20,
        ..Default::default()
    }
}

#[tonic::async_trait]
impl ImageService for FakeRuntime {
    async fn list_images(
        &self,
        _: Request<cri::ListImagesRequest>,
    ) -> Result<Response<cri::ListImagesResponse>, Status> {
        let images = self.0.state.lock().images.iter().map(|n| image(n)).collect();
        Ok(Response::new(cri::ListImagesResponse { images }))
    }

    type StreamImagesStream = BoxStream<'static, Result<cri::StreamImagesResponse, Status>>;

    async fn stream_images(
        &self,
        _: Request<cri::StreamImagesRequest>,
    ) -> Result<Response<Self::StreamImagesStream>, Status> {
        Err(Status::unimplemented("the fake runtime lists its images in one answer"))
    }

    async fn image_status(
        &self,
        request: Request<cri::ImageStatusRequest>,
    ) -> Result<Response<cri::ImageStatusResponse>, Status> {
        let name = request.into_inner().image.unwrap_or_default().image;
        let image = self.0.state.lock().images.contains(&name).then(|| image(&name));
        Ok(Response::new(cri::ImageStatusResponse {
            image,
            ..Default::default()
        }))
    }

    async fn pull_image(
        &self,
        request: Request<cri::PullImageRequest>,
    ) -> Result<Response<cri::PullImageResponse>, Status> {
        let request = request.into_inner();
        let name = request.image.unwrap_or_default().image;
        let annotations = request.sandbox_config.unwrap_or_default().annotations;
        if let Some(why) = annotations.get(super::annotations::PULL_ERROR) {
            return Err(Status::unknown(format!("failed to pull image \"{name}\": {why}")));
        }
        if name.starts_with("missing/") {
            return Err(Status::not_found(format!("failed to pull image \"{name}\": not found")));
        }
        if name.starts_with("private/") && request.auth.unwrap_or_default().username != "u" {
            return Err(Status::permission_denied(format!(
                "failed to pull image \"{name}\": unauthorized"
            )));
        }
        self.0.state.lock().images.insert(name.clone());
        Ok(Response::new(cri::PullImageResponse { image_ref: name }))
    }

    async fn remove_image(
        &self,
        request: Request<cri::RemoveImageRequest>,
    ) -> Result<Response<cri::RemoveImageResponse>, Status> {
        let name = request.into_inner().image.unwrap_or_default().image;
        self.0.state.lock().images.remove(&name);
        Ok(Response::new(cri::RemoveImageResponse {}))
    }

    async fn image_fs_info(
        &self,
        _: Request<cri::ImageFsInfoRequest>,
    ) -> Result<Response<cri::ImageFsInfoResponse>, Status> {
        let at = |path: &String| cri::FilesystemUsage {
            fs_id: Some(cri::FilesystemIdentifier {
                mountpoint: path.clone(),
            }),
            ..Default::default()
        };
        let state = self.0.state.lock();
        Ok(Response::new(cri::ImageFsInfoResponse {
            image_filesystems: state.disks.iter().take(1).map(at).collect(),
            container_filesystems: state.disks.iter().skip(1).map(at).collect(),
        }))
    }
}
