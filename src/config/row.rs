//! What a row of the settings' table is: a key, and the kind of value that it is read and shown as.

use std::marker::PhantomData;

use toml::{Table, Value};

use super::kinds::Kind;

/// Which files may set a key; each later layer is trusted with less.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Layer {
    /// Defaults, vendor's and integrator's file.
    Trusted,
    /// The integrator's drop-ins.
    DropIn,
    /// `<state>/conf.d`: who this device is, its network, and when it may be disturbed. That folder outlives both slots
    /// and the agent can write it: whatever else stood there would outlive a process that was taken over.
    Device,
}

/// A key, whatever its kind: what is said of it, and who may set it.
#[derive(Debug)]
pub struct Row {
    pub path: &'static str,
    /// A TOML literal.
    pub default: Option<&'static str>,
    /// The least trusted layer that may set it.
    pub layer: Layer,
    #[cfg(test)]
    pub told: crate::config::settings::tests::Told,
}

/// A key as it is read.
#[derive(Debug)]
pub struct Setting<K> {
    pub path: &'static str,
    kind: PhantomData<K>,
}

impl<K: Kind> Setting<K> {
    pub const fn new(path: &'static str) -> Setting<K> {
        Setting { path, kind: PhantomData }
    }

    /// Adds `value` to the effective settings.
    pub fn render(&self, value: &K::Value, out: &mut Table) {
        if let Some(value) = K::show(value) {
            insert(out, self.path, value);
        }
    }
}

/// Sets `path` in `out`.
pub fn insert(out: &mut Table, path: &str, value: Value) {
    let Some((section, rest)) = path.split_once('.') else {
        out.insert(path.to_owned(), value);
        return;
    };
    if let Value::Table(inner) = out.entry(section).or_insert_with(|| Table::new().into()) {
        insert(inner, rest, value);
    }
}

/// A section of the table, `rows Name = "path.", LAYER { rows }`: `Name` has a constant for each row, and all as `ROWS`.
/// With `struct Name(further fields)` it also has the values, which are read and shown as a whole.
///
/// A row is `name: Kind = default, LAYER;` or `name: Kind as example, LAYER;`: the default as it stands in a settings
/// file, an example where there is none, and the layer if it is not that of the section. Its doc is what people are
/// told, in the shipped file and in docs/configuration.md.
macro_rules! section {
    ($(#[doc = $about:literal])* $(#[derive($derive:ident)])? struct $name:ident($($further:ident: $type:ty),*)
     = $prefix:literal, $layer:ident { $($rows:tt)* }) => {
        values! { $(#[doc = $about])* $(#[derive($derive)])? $name($($further: $type),*) { $($rows)* } }
        rows! { $(#[doc = $about])* $name = $prefix, $layer { $($rows)* } }
    };
    ($(#[doc = $about:literal])* rows $name:ident = $prefix:literal, $layer:ident { $($rows:tt)* }) => {
        $(#[doc = $about])*
        #[derive(Debug)]
        pub enum $name {}

        rows! { $(#[doc = $about])* $name = $prefix, $layer { $($rows)* } }
    };
}

macro_rules! rows {
    ($(#[doc = $about:literal])* $struct:ident = $prefix:literal, $layer:ident {
        $($(#[doc = $doc:literal])* $name:ident: $kind:ty $(= $default:tt)? $(as $example:tt)? $(, $own:ident)?;)*
    }) => {
        #[allow(non_upper_case_globals, reason = "a row is called what its setting is called")]
        impl $struct {
            $(pub(super) const $name: Setting<$kind> = Setting::new(concat!($prefix, stringify!($name)));)*

            #[cfg(test)]
            const ABOUT: &[&str] = &[$($about),*];

            pub(super) const ROWS: &[Row] = &[$(Row {
                path: $struct::$name.path,
                default: first!($(Some(stringify!($default)),)? None),
                layer: first!($(Layer::$own,)? Layer::$layer),
                #[cfg(test)]
                told: $crate::config::settings::tests::Told {
                    about: $struct::ABOUT,
                    doc: &[$($doc),*],
                    example: first!($(Some(stringify!($example)),)? None),
                    kind: <$kind as $crate::config::settings::tests::Described>::described,
                    is_optional: || <$kind as Kind>::absent().is_some(),
                },
            }),*];
        }
    };
}

macro_rules! values {
    ($(#[$attribute:meta])* $struct:ident($($further:ident: $type:ty),*) {
        $($(#[doc = $doc:literal])* $name:ident: $kind:ty $(= $default:tt)? $(as $example:tt)? $(, $own:ident)?;)*
    }) => {
        $(#[$attribute])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct $struct {
            $(pub $further: $type,)*
            $($(#[doc = $doc])* pub $name: <$kind as Kind>::Value,)*
        }

        impl $struct {
            pub(super) fn read(inputs: &Inputs $(, $further: $type)*) -> Result<$struct, ConfigError> {
                Ok($struct { $($name: inputs.get(&$struct::$name)?,)* $($further,)* })
            }

            pub(super) fn render(&self, out: &mut Table) {
                $($struct::$name.render(&self.$name, out);)*
            }
        }
    };
}

macro_rules! first {
    ($first:expr $(, $other:expr)*) => {
        $first
    };
}

pub(super) use {first, rows, section, values};
