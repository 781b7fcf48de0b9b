//! Under which rights a Pod's processes run.

members! {
    PodSecurity {
        run_as_user: Option<i64>,
        run_as_group: Option<i64>,
        run_as_non_root: Option<bool>,
        fs_group: Option<i64>,
        fs_group_change_policy: String,
        supplemental_groups: Vec<i64>,
        seccomp_profile: Option<Profile>,
        app_armor_profile: Option<Profile>,
        sysctls: Vec<Sysctl>,
    }
    Security {
        privileged: bool,
        run_as_user: Option<i64>,
        run_as_group: Option<i64>,
        run_as_non_root: Option<bool>,
        read_only_root_filesystem: bool,
        allow_privilege_escalation: Option<bool>,
        capabilities: Capabilities,
        seccomp_profile: Option<Profile>,
        app_armor_profile: Option<Profile>,
    }
    Capabilities {
        add: Vec<String>,
        drop: Vec<String>,
    }
    /// A profile of seccomp or of AppArmor: `RuntimeDefault`, `Unconfined`, or `Localhost` with its name.
    Profile {
        #[serde(rename = "type")]
        kind: String,
        localhost_profile: String,
    }
    Sysctl {
        name: String,
        value: String,
    }
}
