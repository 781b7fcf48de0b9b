//! Under which rights a Pod's processes run.

members! {
    PodSecurity {
        run_as_user: Option<i64>,
        run_as_group: Option<i64>,
    }
    Security {
        privileged: bool,
        run_as_user: Option<i64>,
        run_as_group: Option<i64>,
        read_only_root_filesystem: bool,
    }
}
