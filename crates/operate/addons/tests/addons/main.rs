//! The pure parts: files, order, inventory, health, and what is decided for charts.

mod choose;
mod drift;
mod health;
mod helm_plan;
mod inventory;
mod job;
mod live;
mod manifest;
mod order;
mod release;
mod sources;
mod told;
mod tree;
mod trouble;
