#![doc = include_str!("../README.md")]
#![allow(clippy::all, rustdoc::all)]

