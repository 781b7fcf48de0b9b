use super::*;
use crate::runtime::conformance::{self, Workload};

#[tokio::test]
async fn the_memory_runtime_is_a_container_runtime() {
    let runtime = MemoryRuntime::new();
    runtime.add_image("app:1");
    conformance::teach(&runtime);
    let workload = Workload::new("app:1", std::path::Path::new("/nowhere")).without_counts();
    conformance::run(async || runtime.clone(), &workload).await;
}
