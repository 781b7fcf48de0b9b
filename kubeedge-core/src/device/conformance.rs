//! What every [`DeviceProtocol`] has to do, as a suite that a vendor runs against their own.
//!
//! ```no_run
//! # async fn example(protocol: impl kubeedge_core::device::DeviceProtocol, spec: kubeedge_core::device::DeviceSpec) {
//! use kubeedge_core::device::conformance;
//!
//! // A device that answers, and a value that its property `limit` takes.
//! conformance::run(&protocol, &spec, Some(("limit", "7"))).await;
//! # }
//! ```

use std::{
    future::poll_fn,
    task::Poll::{Pending, Ready},
    time::Duration,
};

use super::{AccessMode, DeviceError, DeviceHandle, DeviceProtocol, DeviceSpec, PropertySpec, PropertyType};

/// No device of the suite may take longer for one call.
const DEADLINE: Duration = Duration::from_secs(10);

/// Checks each sentence of the contract, with a device that can be reached and is described by `spec`.
///
/// `writable` names a property that may be written, with a value that the device takes and gives back as it is.
///
/// # Panics
/// With the sentence that is broken.
pub async fn run<P: DeviceProtocol>(protocol: &P, spec: &DeviceSpec, writable: Option<(&str, &str)>) {
    assert!(!protocol.name().is_empty(), "a protocol has a name");
    assert_eq!(protocol.name(), spec.protocol, "the specification is for this protocol");
    let mut handle = open(protocol, spec).await;
    every_property_reads_as_a_value_of_its_type(&mut *handle, spec).await;
    a_property_that_does_not_exist_is_invalid(&mut *handle, spec).await;
    a_read_that_is_dropped_leaves_the_handle_usable(&mut *handle, spec).await;
    a_property_that_is_read_only_is_not_written(&mut *handle, spec).await;
    if let Some((property, value)) = writable {
        what_was_written_is_what_the_device_has(&mut *handle, spec, property, value).await;
    }
    drop(handle);
    let mut handle = open(protocol, spec).await;
    every_property_reads_as_a_value_of_its_type(&mut *handle, spec).await;
}

async fn open<P: DeviceProtocol>(protocol: &P, spec: &DeviceSpec) -> Box<dyn DeviceHandle> {
    match in_time(protocol.open(spec)).await {
        Ok(handle) => handle,
        Err(error) => {
            panic!("a device that can be reached is opened, also again after a handle was dropped: {error}")
        }
    }
}

fn readable(spec: &DeviceSpec) -> impl Iterator<Item = &PropertySpec> {
    spec.properties.iter().filter(|property| property.value_type != PropertyType::Stream)
}

async fn every_property_reads_as_a_value_of_its_type(handle: &mut dyn DeviceHandle, spec: &DeviceSpec) {
    for property in readable(spec) {
        match in_time(handle.read(property)).await {
            Ok(value) => {
                let checked = property.check(&value);
                assert!(checked.is_ok(), "{:?} reads in the form of its type: {checked:?}", property.name);
            }
            Err(error) => panic!("{:?} can be read: {error}", property.name),
        }
    }
}

async fn a_property_that_does_not_exist_is_invalid(handle: &mut dyn DeviceHandle, spec: &DeviceSpec) {
    let Some(property) = readable(spec).next() else { return };
    let absent =
        PropertySpec { name: "no-such-property".to_owned(), visitor: Default::default(), ..property.clone() };
    let read = in_time(handle.read(&absent)).await;
    assert!(matches!(read, Err(DeviceError::Invalid(_))), "reading what does not exist is invalid: {read:?}");
    let written = in_time(handle.write(&absent, "0")).await;
    assert!(
        matches!(written, Err(DeviceError::Invalid(_) | DeviceError::Rejected(_))),
        "writing what does not exist is refused: {written:?}"
    );
}

async fn a_read_that_is_dropped_leaves_the_handle_usable(handle: &mut dyn DeviceHandle, spec: &DeviceSpec) {
    let Some(property) = readable(spec).next() else { return };
    {
        let mut read = handle.read(property);
        // Polled once and dropped: at most as far as the first time it waits.
        poll_fn(|context| match read.as_mut().poll(context) {
            Ready(_) | Pending => Ready(()),
        })
        .await;
    }
    let read = in_time(handle.read(property)).await;
    assert!(read.is_ok(), "a handle is usable after a read was dropped: {read:?}");
}

async fn a_property_that_is_read_only_is_not_written(handle: &mut dyn DeviceHandle, spec: &DeviceSpec) {
    let Some(property) = readable(spec).find(|property| property.access == AccessMode::ReadOnly) else {
        return;
    };
    let written = in_time(handle.write(property, "0")).await;
    assert!(
        matches!(written, Err(DeviceError::Rejected(_) | DeviceError::Invalid(_))),
        "a property that is read-only is not written: {written:?}"
    );
}

async fn what_was_written_is_what_the_device_has(
    handle: &mut dyn DeviceHandle,
    spec: &DeviceSpec,
    property: &str,
    value: &str,
) {
    let Some(property) = spec.property(property) else {
        panic!("the specification has the property {property:?}");
    };
    let written = in_time(handle.write(property, value)).await;
    assert!(written.is_ok(), "the value is taken: {written:?}");
    let read = in_time(handle.read(property)).await;
    assert!(matches!(&read, Ok(read) if read == value), "Ok says that the device has it: {read:?}");
}

async fn in_time<T>(call: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, call).await {
        Ok(result) => result,
        Err(_) => panic!("a device that can be reached answers within {DEADLINE:?}"),
    }
}
