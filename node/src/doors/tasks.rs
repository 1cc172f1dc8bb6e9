//! The gRPC door of tasks: `cairn.v1.Tasks`. As in [`super::grpc`], a method says who may call it and which flow answers.

use cairn_protocol::api;
use tonic::{Request, Response, Status};

use super::{
    call::{Calls, Events, Needs},
    generated::tasks_server::Tasks,
};
use crate::flows;

#[tonic::async_trait]
impl Tasks for Calls {
    type EmbedStream = Events<api::EmbedEvent>;

    async fn describe(
        &self,
        request: Request<api::DescribeRequest>,
    ) -> Result<Response<api::DescribeResponse>, Status> {
        self.once(request, Needs::Nothing, flows::tasks::describe).await
    }

    async fn embed(&self, request: Request<api::EmbedRequest>) -> Result<Response<Self::EmbedStream>, Status> {
        self.stream(request, Needs::Nothing, flows::tasks::embed)
    }
}
