//! A property's registers, and the values in them.

use std::borrow::Cow;

use base64::{Engine, engine::general_purpose::STANDARD};
use kubeedge_core::device::{PropertySpec, PropertyType};
use tokio_modbus::prelude::{Request, Response};

use super::super::settings::Settings;

/// Where a property's value is, and in which form.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Register {
    table: Table,
    offset: u16,
    limit: u16,
    scale: f64,
    swap_bytes: bool,
    swap_registers: bool,
    form: Form,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Table {
    Coil,
    DiscreteInput,
    Holding,
    Input,
}

/// The form of the value in its registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// An integer; whether its first bit is its sign.
    Integer { signed: bool },
    /// IEEE 754, as many bits as the registers have.
    Float,
    /// Bytes.
    Raw,
}

impl Register {
    /// Reads a property's visitor.
    pub(super) fn read(property: &PropertySpec) -> Result<Self, String> {
        let settings = Settings(&property.visitor);
        let table = match settings.text(&["register"])? {
            Some("CoilRegister") => Table::Coil,
            Some("DiscreteInputRegister") => Table::DiscreteInput,
            Some("HoldingRegister") => Table::Holding,
            Some("InputRegister") => Table::Input,
            Some(other) => {
                return Err(format!(
                    "register is {other:?}, and not CoilRegister, DiscreteInputRegister, HoldingRegister or \
                     InputRegister"
                ));
            }
            None => return Err("register is missing: the kind of register".to_owned()),
        };
        let Some(offset) = settings.whole(&["offset"], 0, 65_535)? else {
            return Err("offset is missing: the first register's address".to_owned());
        };
        let asked = match settings.text(&["dataType"])? {
            Some(name) => Some(data_type(name)?),
            None => None,
        };
        let (form, needed) = asked.unwrap_or_else(|| default_form(property.value_type));
        // 125 registers and 2,000 coils are what one frame carries (Modbus Application Protocol 1.1b3, 6.1 and 6.3).
        let max = if table.is_bits() { 64 } else { 125 };
        let limit = settings.whole(&["limit"], 1, max)?.unwrap_or(if table.is_bits() { 1 } else { needed });
        let form = match form {
            // As KubeEdge's mapper has it, except that one register is enough for a scaled number.
            Form::Float if limit == 1 && asked.is_none() => Form::Integer { signed: false },
            Form::Integer { .. } | Form::Float | Form::Raw => form,
        };
        let scale = settings.number(&["scale"])?.unwrap_or(1.0);
        if scale == 0.0 {
            return Err("scale is zero, so every value would be".to_owned());
        }
        let register = Self {
            table,
            offset: u16::try_from(offset).unwrap_or_default(),
            limit: u16::try_from(limit).unwrap_or(1),
            scale,
            swap_bytes: settings.flag(&["isSwap"])?,
            swap_registers: settings.flag(&["isRegisterSwap"])?,
            form,
        };
        register.check()
    }

    fn check(self) -> Result<Self, String> {
        let fits = match self.form {
            _ if self.table.is_bits() => true,
            Form::Integer { .. } => matches!(self.limit, 1 | 2 | 4),
            Form::Float => matches!(self.limit, 2 | 4),
            Form::Raw => true,
        };
        if self.offset.checked_add(self.limit - 1).is_none() {
            return Err(format!("offset {} and limit {} go beyond address 65535", self.offset, self.limit));
        }
        if fits {
            Ok(self)
        } else {
            Err(format!("limit is {}, which is no length of such a number", self.limit))
        }
    }

    /// The request that reads it.
    pub(super) fn request(&self) -> Request<'static> {
        let Self { offset, limit, .. } = *self;
        match self.table {
            Table::Coil => Request::ReadCoils(offset, limit),
            Table::DiscreteInput => Request::ReadDiscreteInputs(offset, limit),
            Table::Holding => Request::ReadHoldingRegisters(offset, limit),
            Table::Input => Request::ReadInputRegisters(offset, limit),
        }
    }

    /// The value in an answer.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the library's answers: the others are of other requests"
    )]
    pub(super) fn value(&self, property: &PropertySpec, answer: Response) -> Result<String, String> {
        match answer {
            Response::ReadCoils(bits) | Response::ReadDiscreteInputs(bits) => {
                // Coils come in whole bytes.
                let bits = bits.get(..usize::from(self.limit)).ok_or("the answer has too few coils")?;
                let number = bits.iter().rev().fold(0_u64, |number, bit| (number << 1) | u64::from(*bit));
                #[expect(
                    clippy::cast_precision_loss,
                    reason = "coils beyond 53 are few, and checked by nobody"
                )]
                property.value_of(number as f64, self.scale)
            }
            Response::ReadHoldingRegisters(words) | Response::ReadInputRegisters(words) => {
                if words.len() != usize::from(self.limit) {
                    return Err(format!("the answer has {} registers, and not {}", words.len(), self.limit));
                }
                self.value_of_words(property, words)
            }
            other => {
                Err(format!("the answer is of another kind: function {}", other.function_code().value()))
            }
        }
    }

    fn value_of_words(&self, property: &PropertySpec, words: Vec<u16>) -> Result<String, String> {
        let bytes: Vec<u8> = self.ordered(words).into_iter().flat_map(u16::to_be_bytes).collect();
        match self.form {
            Form::Raw if property.value_type == PropertyType::Bytes => Ok(STANDARD.encode(bytes)),
            Form::Raw => {
                let text = String::from_utf8(bytes).map_err(|_| "the registers have no text in UTF-8")?;
                Ok(text.trim_end_matches('\0').to_owned())
            }
            Form::Float => {
                let number = match <[u8; 4]>::try_from(&bytes[..]) {
                    Ok(bytes) => f64::from(f32::from_be_bytes(bytes)),
                    Err(_) => f64::from_be_bytes(bytes.try_into().map_err(|_| "there are not 4 registers")?),
                };
                // The shortest text of 32 bits is what the device means, and not what 64 bits make of it.
                let short = if bytes_of(self.limit) == 4 { shortest(number) } else { number };
                property.value_of(short, self.scale)
            }
            Form::Integer { signed } => self.integer(property, &bytes, signed),
        }
    }

    fn integer(&self, property: &PropertySpec, bytes: &[u8], signed: bool) -> Result<String, String> {
        let fill = if signed && bytes[0] >= 0x80 { 0xff } else { 0 };
        let mut wide = [fill; 16];
        wide[16 - bytes.len()..].copy_from_slice(bytes);
        let number = i128::from_be_bytes(wide);
        // 64 bits are more than a floating point number has.
        if property.value_type == PropertyType::Int && self.scale == 1.0 {
            return Ok(number.to_string());
        }
        #[expect(clippy::cast_precision_loss, reason = "what is scaled is a floating point number")]
        property.value_of(number as f64, self.scale)
    }

    /// The request that writes a value.
    pub(super) fn write(&self, property: &PropertySpec, value: &str) -> Result<Request<'static>, String> {
        let offset = self.offset;
        match self.table {
            Table::DiscreteInput | Table::Input => Err("input registers cannot be written".to_owned()),
            Table::Coil => {
                let number = self.whole(property, value)?;
                if !(0..1 << self.limit.min(64)).contains(&number) {
                    return Err(format!("{value} is no number of {} coils", self.limit));
                }
                let bits: Vec<bool> = (0..self.limit).map(|bit| number >> bit & 1 == 1).collect();
                Ok(match bits[..] {
                    [bit] => Request::WriteSingleCoil(offset, bit),
                    _ => Request::WriteMultipleCoils(offset, Cow::Owned(bits)),
                })
            }
            Table::Holding => {
                let bytes = self.bytes(property, value)?;
                let words = bytes.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
                let words = self.ordered(words.collect());
                Ok(match words[..] {
                    [word] => Request::WriteSingleRegister(offset, word),
                    _ => Request::WriteMultipleRegisters(offset, Cow::Owned(words)),
                })
            }
        }
    }

    fn bytes(&self, property: &PropertySpec, value: &str) -> Result<Vec<u8>, String> {
        let room = bytes_of(self.limit);
        match self.form {
            Form::Raw => {
                let mut bytes = if property.value_type == PropertyType::Bytes {
                    STANDARD.decode(value).map_err(|error| error.to_string())?
                } else {
                    value.as_bytes().to_vec()
                };
                if bytes.len() > room {
                    return Err(format!("the value has {} bytes, and there is room for {room}", bytes.len()));
                }
                bytes.resize(room, 0);
                Ok(bytes)
            }
            Form::Float => {
                let number = property.number_of(value, self.scale)?;
                #[expect(clippy::cast_possible_truncation, reason = "the registers have 32 bits")]
                Ok(if room == 4 {
                    (number as f32).to_be_bytes().to_vec()
                } else {
                    number.to_be_bytes().to_vec()
                })
            }
            Form::Integer { signed } => {
                let number = self.whole(property, value)?;
                let bits = room * 8;
                let range = if signed { -(1_i128 << (bits - 1))..1 << (bits - 1) } else { 0..1_i128 << bits };
                if !range.contains(&number) {
                    return Err(format!("{value} is no number of {bits} bits"));
                }
                Ok(number.to_be_bytes()[16 - room..].to_vec())
            }
        }
    }

    /// The whole number that the device gets for a value.
    fn whole(&self, property: &PropertySpec, value: &str) -> Result<i128, String> {
        if self.scale == 1.0
            && let Ok(number) = value.parse::<i64>()
        {
            return Ok(number.into());
        }
        let number = property.number_of(value, self.scale)?;
        if number.fract() != 0.0 {
            let nearest = number.round() * self.scale;
            return Err(format!("{value} is no multiple of {}; {nearest} is near it", self.scale));
        }
        #[expect(clippy::cast_possible_truncation, reason = "the range is checked by the caller")]
        Ok(number as i128)
    }

    /// Registers in the order of the value's bytes; the other way round it is the same.
    fn ordered(&self, mut words: Vec<u16>) -> Vec<u16> {
        if self.swap_registers {
            words.reverse();
        }
        if self.swap_bytes {
            words.iter_mut().for_each(|word| *word = word.swap_bytes());
        }
        words
    }
}

impl Table {
    fn is_bits(self) -> bool {
        matches!(self, Self::Coil | Self::DiscreteInput)
    }
}

fn bytes_of(limit: u16) -> usize {
    usize::from(limit) * 2
}

/// The number that the shortest text of a 32-bit number says.
#[expect(clippy::cast_possible_truncation, reason = "it has 32 bits")]
fn shortest(number: f64) -> f64 {
    (number as f32).to_string().parse().unwrap_or(number)
}

/// The form of a property's type, and how many registers it needs.
fn default_form(value_type: PropertyType) -> (Form, u32) {
    match value_type {
        PropertyType::Int | PropertyType::Boolean => (Form::Integer { signed: false }, 1),
        PropertyType::Float => (Form::Float, 2),
        PropertyType::Double => (Form::Float, 4),
        PropertyType::String | PropertyType::Bytes | PropertyType::Stream => (Form::Raw, 1),
    }
}

fn data_type(name: &str) -> Result<(Form, u32), String> {
    Ok(match name {
        "int16" => (Form::Integer { signed: true }, 1),
        "int32" => (Form::Integer { signed: true }, 2),
        "int64" => (Form::Integer { signed: true }, 4),
        "uint16" => (Form::Integer { signed: false }, 1),
        "uint32" => (Form::Integer { signed: false }, 2),
        "uint64" => (Form::Integer { signed: false }, 4),
        "float32" => (Form::Float, 2),
        "float64" => (Form::Float, 4),
        other => {
            return Err(format!(
                "dataType is {other:?}, and not int16, uint16, int32, uint32, int64, uint64, float32 or float64"
            ));
        }
    })
}
