//! Values on their way to Python and back.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use bytes::Bytes;
use polyloop::{Buffer, Error, PythonPool};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, TestRunner};
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};

use crate::rig::pids;
use crate::rig::python::run;
use crate::{builder, pool};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Shape {
    Empty,
    Circle(f64),
    Box(u32, u32),
    Named { name: String, inner: Option<Box<Shape>> },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Newtype(i64);

/// Integers of 128 bits wherever a value is within another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Wide {
    Alone(u128),
    Pair(i128, u128),
    Named { int: Option<i128>, list: (u128, [i128; 2]) },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Marker;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Everything {
    nothing: (),
    truth: bool,
    small: i8,
    signed: i64,
    unsigned: u64,
    single: f32,
    double: f64,
    letter: char,
    text: String,
    #[serde(with = "serde_bytes")]
    bytes: Vec<u8>,
    buffer: Buffer,
    maybe: Option<String>,
    list: Vec<u16>,
    tuple: (u8, String, bool),
    set: BTreeSet<i32>,
    by_text: BTreeMap<String, Vec<u8>>,
    by_number: BTreeMap<i64, Option<u8>>,
    by_pair: BTreeMap<(i8, String), ()>,
    newtype: Newtype,
    marker: Marker,
    shapes: Vec<Shape>,
    address: IpAddr,
    long: u128,
    longs: BTreeMap<i128, Vec<Option<i128>>>,
    wide: Wide,
}

fn shape() -> impl Strategy<Value = Shape> {
    let leaf = prop_oneof![
        Just(Shape::Empty),
        any::<f64>().prop_filter("equal to itself", |n| !n.is_nan()).prop_map(Shape::Circle),
        any::<(u32, u32)>().prop_map(|(a, b)| Shape::Box(a, b)),
    ];
    leaf.prop_recursive(3, 8, 2, |inner| {
        (any::<String>(), proptest::option::of(inner.prop_map(Box::new)))
            .prop_map(|(name, inner)| Shape::Named { name, inner })
    })
}

/// Of all widths: most of those at random have 128 bits.
fn longs() -> impl Strategy<Value = (BTreeMap<i128, Vec<Option<i128>>>, Wide)> {
    let signed = || (any::<i128>(), 0..128u32).prop_map(|(int, bits)| int >> bits);
    let unsigned = || (any::<u128>(), 0..128u32).prop_map(|(int, bits)| int >> bits);
    let wide = prop_oneof![
        unsigned().prop_map(Wide::Alone),
        (signed(), unsigned()).prop_map(|(a, b)| Wide::Pair(a, b)),
        (proptest::option::of(signed()), unsigned(), [signed(), signed()])
            .prop_map(|(int, first, rest)| Wide::Named { int, list: (first, rest) }),
    ];
    let keyed = proptest::collection::vec(proptest::option::of(signed()), 0..3);
    (proptest::collection::btree_map(signed(), keyed, 0..4), wide)
}

fn everything() -> impl Strategy<Value = Everything> {
    let plain = (any::<bool>(), any::<i8>(), any::<i64>(), any::<u64>(), any::<char>(), any::<String>());
    let finite = |n: f64| if n.is_nan() { f64::INFINITY } else { n };
    let numbers = (any::<f32>().prop_map(move |n| finite(n.into()) as f32), any::<f64>().prop_map(finite));
    let blobs = (
        proptest::collection::vec(any::<u8>(), 0..400),
        prop_oneof![4 => 0..300usize, 1 => 65_530..65_550usize, 1 => 100_000..200_000usize],
    );
    let many = (
        any::<Option<String>>(),
        any::<Vec<u16>>(),
        any::<(u8, String, bool)>(),
        any::<BTreeSet<i32>>(),
        any::<BTreeMap<String, Vec<u8>>>(),
        any::<BTreeMap<i64, Option<u8>>>(),
        any::<BTreeMap<(i8, String), ()>>(),
        proptest::collection::vec(shape(), 0..5),
    );
    (plain, numbers, blobs, many, any::<(i64, IpAddr, u128)>(), longs()).prop_map(
        |(plain, numbers, blobs, many, rest, longs)| {
            let (truth, small, signed, unsigned, letter, text) = plain;
            let (maybe, list, tuple, set, by_text, by_number, by_pair, shapes) = many;
            Everything {
                nothing: (),
                truth,
                small,
                signed,
                unsigned,
                single: numbers.0,
                double: numbers.1,
                letter,
                text,
                buffer: Buffer::from(blobs.0.iter().copied().chain([7]).cycle().take(blobs.1).collect::<Vec<_>>()),
                bytes: blobs.0,
                maybe,
                list,
                tuple,
                set,
                by_text,
                by_number,
                by_pair,
                newtype: Newtype(rest.0),
                marker: Marker,
                shapes,
                address: rest.1,
                long: rest.2,
                longs: longs.0,
                wide: longs.1,
            }
        },
    )
}

#[test]
fn any_value_comes_back_from_python_as_it_went() {
    run(|| async {
        let py = pool(2).await;
        let mut runner = TestRunner::new(Config::default());
        for _ in 0..30 {
            let value = everything().new_tree(&mut runner).unwrap().current();
            let back: Everything = py.call("tasks:same").arg(&value).await.unwrap();
            assert_eq!(back, value);
            let (args, kwargs): ((Everything, Everything), HashMap<String, Everything>) =
                py.call("tasks:coroutine").arg(&value).kwarg("x", &value).arg(&value).await.unwrap();
            assert_eq!((&args.0, &args.1, &kwargs["x"]), (&value, &value, &value));
        }
    });
}

async fn shown(py: &PythonPool, value: impl Serialize) -> String {
    py.call("tasks:shown").arg(value).await.unwrap()
}

#[test]
fn values_arrive_in_python_as_the_table_says() {
    run(|| async {
        let py = pool(1).await;
        assert_eq!(shown(&py, None::<u8>).await, "NoneType None");
        assert_eq!(shown(&py, ()).await, "NoneType None");
        assert_eq!(shown(&py, true).await, "bool True");
        assert_eq!(shown(&py, i64::MIN).await, "int -9223372036854775808");
        assert_eq!(shown(&py, u64::MAX).await, "int 18446744073709551615");
        assert_eq!(shown(&py, 7u128).await, "int 7");
        assert_eq!(shown(&py, -7i128).await, "int -7");
        assert_eq!(shown(&py, u128::MAX).await, "int 340282366920938463463374607431768211455");
        assert_eq!(shown(&py, i128::MIN).await, "int -170141183460469231731687303715884105728");
        assert_eq!(shown(&py, i128::from(u64::MAX) + 1).await, "int 18446744073709551616");
        assert_eq!(shown(&py, BTreeMap::from([(1u128 << 64, ())])).await, "dict {18446744073709551616: None}");
        assert_eq!(shown(&py, -200i16).await, "int -200");
        assert_eq!(shown(&py, 0.5f32).await, "float 0.5");
        assert_eq!(shown(&py, f64::INFINITY).await, "float inf");
        assert_eq!(shown(&py, f64::NAN).await, "float nan");
        assert_eq!(shown(&py, 'ß').await, "str 'ß'");
        assert_eq!(shown(&py, serde_bytes::Bytes::new(b"\0\xff")).await, r"bytes b'\x00\xff'");
        assert_eq!(shown(&py, Bytes::from_static(b"b")).await, "bytes b'b'");
        assert_eq!(shown(&py, vec![Some(1), None]).await, "list [1, None]");
        assert_eq!(shown(&py, (1, "a")).await, "list [1, 'a']");
        assert_eq!(shown(&py, BTreeMap::from([((1, (2, 3)), [4])])).await, "dict {(1, (2, 3)): [4]}");
        assert_eq!(shown(&py, Newtype(5)).await, "int 5");
        assert_eq!(shown(&py, Marker).await, "list []");
        assert_eq!(shown(&py, Shape::Empty).await, "str 'Empty'");
        assert_eq!(shown(&py, Shape::Circle(1.0)).await, "dict {'Circle': 1.0}");
        assert_eq!(shown(&py, Shape::Box(1, 2)).await, "dict {'Box': [1, 2]}");
        let named = Shape::Named { name: "n".into(), inner: None };
        assert_eq!(shown(&py, named).await, "dict {'Named': {'name': 'n', 'inner': None}}");
        assert_eq!(shown(&py, IpAddr::from([127, 0, 0, 1])).await, "str '127.0.0.1'");
        assert!(shown(&py, Buffer::from(vec![1])).await.starts_with("memoryview "));
    });
}

#[test]
fn what_python_derives_from_a_type_that_is_known_arrives_as_that() {
    #[derive(Debug, PartialEq, Deserialize)]
    struct Derived {
        color: String,
        level: u8,
        point: (i32, i32),
        ordered: HashMap<String, u8>,
        set: BTreeSet<u8>,
        frozen: Vec<u8>,
        array: Buffer,
        #[serde(with = "serde_bytes")]
        view: Vec<u8>,
    }
    run(|| async {
        let derived: Derived = pool(1).await.call("tasks:derived").await.unwrap();
        let expected = Derived {
            color: "red".into(),
            level: 3,
            point: (1, 2),
            ordered: HashMap::from([("a".into(), 1)]),
            set: BTreeSet::from([7]),
            frozen: vec![8],
            array: b"ab".to_vec().into(),
            view: b"abc".to_vec(),
        };
        assert_eq!(derived, expected);
    });
}

#[test]
fn what_has_no_counterpart_is_an_error_that_says_what_and_the_worker_lives() {
    run(|| async {
        let py = pool(1).await;
        let worker = pids(&py.stats());
        for (kind, told) in [
            ("object", "a value of type object has no counterpart in Rust"),
            ("complex", "a value of type complex has no counterpart in Rust"),
            ("nested", "a value of type function has no counterpart in Rust"),
            ("long", "an integer of more than 128 bits"),
            ("negative", "an integer of more than 128 bits"),
            ("surrogate", "a lone surrogate"),
            ("endless", "or contains itself"),
        ] {
            let Err(Error::Remote(error)) = py.call::<IgnoredAny>("tasks:strange").arg(kind).await else {
                panic!("{kind}");
            };
            assert!(error.to_string().contains(told), "{error}");
        }
        let wrong = py.call::<Vec<u8>>("tasks:same").arg("text").await;
        let Err(Error::Remote(error)) = wrong else { panic!("{wrong:?}") };
        assert!(error.to_string().contains("Vec<u8>"), "{error}");
        assert!(matches!(py.call::<u8>("tasks:same").arg(300).await, Err(Error::Remote(_))));
        for (told, failed) in [
            ("expected u64", py.call::<u64>("tasks:same").arg(1u128 << 64).await.map(u128::from)),
            ("expected u128", py.call::<u128>("tasks:same").arg(i128::from(i64::MIN) - 1).await),
            ("integer `-1`", py.call::<u128>("tasks:same").arg(-1).await),
            ("byte array", py.call::<u128>("tasks:same").arg(Bytes::from_static(&[0; 16])).await),
        ] {
            let Err(Error::Remote(error)) = failed else { panic!("{told}: {failed:?}") };
            assert!(error.to_string().contains(told), "{error}");
        }
        assert!(matches!(py.call::<i128>("tasks:same").arg(u128::MAX).await, Err(Error::Remote(_))));
        assert_eq!(py.call::<f64>("tasks:same").arg(3).await.unwrap(), 3.0, "an int is a float to Python");
        assert_eq!(pids(&py.stats()), worker);
    });
}

#[test]
fn an_argument_that_serde_can_not_write_is_refused_where_it_is_given() {
    struct Broken;
    impl Serialize for Broken {
        fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            Err(serde::ser::Error::custom("broken"))
        }
    }
    run(|| async {
        let py = pool(1).await;
        let buffer = Buffer::from(vec![0; 1 << 20]);
        for call in [
            py.call::<()>("tasks:same").arg(&buffer).arg(Broken),
            py.call::<()>("tasks:same").kwarg("x", Broken).arg(&buffer),
        ] {
            let Err(Error::Unsendable(error)) = call.await else { panic!() };
            assert!(error.to_string().contains("broken"), "{error}");
        }
        assert_eq!(py.stats().unfinished, 0);
    });
}

const LARGE: usize = 3 << 20;

#[test]
fn a_large_buffer_is_looked_at_in_place_in_python() {
    run(|| async {
        let py = pool(1).await;
        for len in [0, 10, 65_535, 65_536, LARGE] {
            let bytes: Vec<u8> = (0..len).map(|n| n as u8).collect();
            let sum: u64 = bytes.iter().step_by(4099).map(|byte| u64::from(*byte)).sum();
            let looked: (String, bool, usize, u64) =
                py.call("tasks:looked_at").arg(Buffer::from(bytes)).retries(1).await.unwrap();
            assert_eq!(looked, ("memoryview".into(), true, len, sum));
        }
    });
}

async fn read<R: DeserializeOwned>(py: &PythonPool, len: usize, kind: &str) -> R {
    py.call("tasks:zeros").arg(len).arg(kind).await.unwrap()
}

#[test]
fn large_results_come_in_place_to_a_buffer_and_as_a_copy_to_others() {
    run(|| async {
        let py = pool(1).await;
        for len in [8, 65_536, LARGE] {
            let zeros = vec![0; len];
            for kind in ["bytes", "bytearray", "view", "array"] {
                let buffer: Buffer = read(&py, len, kind).await;
                assert_eq!(&*buffer, zeros);
                if len >= 65_536 {
                    assert_eq!(buffer.as_ptr().align_offset(64), 0, "{kind}");
                }
                assert_eq!(read::<serde_bytes::ByteBuf>(&py, len, kind).await, zeros);
                assert_eq!(read::<Bytes>(&py, len, kind).await, zeros);
                assert_eq!(read::<Vec<u8>>(&py, len, kind).await, zeros);
                read::<IgnoredAny>(&py, len, kind).await;
            }
            assert_eq!(read::<String>(&py, len, "text").await, "0".repeat(len));
        }
    });
}

#[test]
fn large_parts_of_a_value_are_each_in_its_place() {
    #[derive(Deserialize)]
    struct Parcels<A, B> {
        first: A,
        small: Vec<Buffer>,
        second: B,
        list: Vec<u32>,
    }
    async fn check<A: DeserializeOwned + AsRef<[u8]>, B: DeserializeOwned + AsRef<[u8]>>(py: &PythonPool, size: usize) {
        let parcels: Parcels<A, B> = py.call("tasks:parcels").arg(size).await.unwrap();
        assert_eq!(parcels.first.as_ref(), vec![b'1'; size]);
        assert_eq!(parcels.second.as_ref(), vec![b'3'; size]);
        assert_eq!(*parcels.small[0], *b"2");
        assert!(parcels.list.into_iter().eq(0..size as u32 / 2));
    }
    run(|| async {
        let py = pool(1).await;
        for size in [10, 70_000, 300_001] {
            check::<Buffer, Buffer>(&py, size).await;
            check::<Buffer, Vec<u8>>(&py, size).await;
            check::<Vec<u8>, Buffer>(&py, size).await;
            check::<Bytes, Bytes>(&py, size).await;
        }
    });
}

#[test]
fn large_results_of_a_worker_that_may_have_no_blocks_arrive_all_the_same() {
    run(|| async {
        let py = builder(1).initializer("tasks:allow_no_files").build().await.unwrap();
        for kind in ["bytes", "array"] {
            let buffer: Buffer = read(&py, 200_000, kind).await;
            assert_eq!(*buffer, *vec![0; 200_000]);
        }
        assert_eq!(read::<String>(&py, 200_000, "text").await, "0".repeat(200_000));
    });
}

#[test]
fn arrays_of_numpy_travel_as_their_bytes_and_its_numbers_as_numbers() {
    #[derive(Debug, PartialEq, Deserialize)]
    struct Numbers {
        single: f32,
        double: f64,
        integer: i64,
        truth: bool,
        scalar: u8,
        text: String,
    }
    run(|| async {
        let py = pool(1).await;
        let numbers: Numbers = py.call("arrays:numbers").await.unwrap();
        let text = "text".into();
        let expected = Numbers { single: 1.5, double: 2.5, integer: -3, truth: true, scalar: 4, text };
        assert_eq!(numbers, expected);
        for count in [30, 300_000] {
            let expected: Vec<u8> = (0..count).flat_map(|n| (n as f32).to_ne_bytes()).collect();
            for order in ["C", "F"] {
                let array: Buffer = py.call("arrays:ramp").arg(count).arg(order).await.unwrap();
                assert!(*array == expected[..], "{count} {order}");
            }
            let total: f64 = py.call("arrays:total").arg(Buffer::from(expected)).await.unwrap();
            assert!((total / (f64::from(count) * f64::from(count - 1) / 2.0) - 1.0).abs() < 0.001);
        }
        assert_eq!(py.call::<Buffer>("arrays:records").await.unwrap().len(), 12);
    });
}
