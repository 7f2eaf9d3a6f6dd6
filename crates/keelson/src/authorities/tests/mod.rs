mod command;
mod shared;
mod world;
mod years;
