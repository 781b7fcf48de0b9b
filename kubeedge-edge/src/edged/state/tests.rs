//! Stories of the plan.
