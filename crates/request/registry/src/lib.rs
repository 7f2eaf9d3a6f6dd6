//! One create/update/patch/delete for every kind: resource table, strategies, validation, columns.

pub mod user;

pub use user::UserInfo;
