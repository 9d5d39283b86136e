//! Services: never refused, but told when an annotation does not do what it says.

use heddle_control_index::annotation::{self, Annotated};
use k8s_openapi::api::core::v1::Service;

use super::verdict::Verdict;

pub(super) fn service(service: &Service) -> Verdict {
    let mut verdict = Verdict::default();
    if let Some(annotations) = &service.metadata.annotations {
        for problem in annotation::problems(Annotated::Service, annotations) {
            verdict.warn(problem.to_string());
        }
    }
    verdict
}
