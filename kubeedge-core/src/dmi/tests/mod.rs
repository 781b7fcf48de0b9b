mod authority;
mod convert;
mod socket;
