//! The decoder against a model that follows the RFC word by word.

use std::collections::VecDeque;

use http2::{Headers, hpack::Decoder};
use proptest::{collection::vec, prelude::*};

use super::pairs;

proptest! {
    #[test]
    fn the_decoder_does_what_the_model_does(
        blocks in vec((vec(0..4200usize, 0..2), vec(op(), 0..12)), 1..12),
        announced in prop::sample::select(vec![4096usize, 5000]),
        keep in prop_oneof![Just(usize::MAX), 0..600usize],
    ) {
        let (mut decoder, mut model) = (Decoder::new(announced), Model::default());
        for (updates, ops) in blocks {
            let mut block = Vec::new();
            let mut expected = Some(Vec::new());
            for size in updates {
                integer(size, 5, 0x20, &mut block);
                if size > announced { expected = None } else { model.resize(size) }
            }
            for op in ops {
                op.write(&mut block);
                expected = expected.and_then(|mut list| { list.push(model.apply(&op)?); Some(list) });
            }
            let mut read = Headers::new();
            let result = decoder.decode(&block, keep, &mut read);
            let Some(list) = expected else {
                prop_assert!(result.is_err());
                return Ok(());
            };
            let size = |list: &[(Vec<u8>, Vec<u8>)]| list.iter().map(|(n, v)| n.len() + v.len() + 32).sum::<usize>();
            prop_assert_eq!(result.unwrap().list_size, size(&list));
            let kept = (0..=list.len()).rev().find(|&n| size(&list[..n]) <= keep).unwrap();
            let mut expected = list[..kept].to_vec();
            for (name, value) in &list[kept..] {
                let forms = [&b":method"[..], b"content-type"].contains(&&name[..]);
                let first = expected.iter().all(|(other, _)| other != name);
                if keep > 0 && forms && first && name.len() + value.len() <= 128 {
                    expected.push((name.clone(), value.clone()));
                }
            }
            prop_assert_eq!(pairs(&read), expected);
        }
    }
}

/// One field's representation (RFC 7541 §6); strings are never Huffman-coded here.
#[derive(Clone, Debug)]
enum Op {
    Indexed(usize),
    Literal {
        form: Form,
        name: Result<usize, Vec<u8>>,
        value: Vec<u8>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    Incremental,
    Without,
    Never,
}

fn op() -> impl Strategy<Value = Op> {
    let index = || prop_oneof![prop::sample::select(vec![2usize, 8, 15, 61]), 62..75usize];
    let form = prop::sample::select(vec![
        Form::Incremental,
        Form::Incremental,
        Form::Without,
        Form::Never,
    ]);
    let text = || prop_oneof![4 => vec(any::<u8>(), 0..20), 1 => vec(any::<u8>(), 0..1500)];
    let name = prop_oneof![
        index().prop_map(Ok),
        text().prop_map(Err),
        text().prop_map(Err)
    ];
    prop_oneof![
        index().prop_map(Op::Indexed),
        (form, name, text()).prop_map(|(form, name, value)| Op::Literal { form, name, value }),
    ]
}

impl Op {
    fn write(&self, out: &mut Vec<u8>) {
        let string = |text: &[u8], out: &mut Vec<u8>| {
            integer(text.len(), 7, 0, out);
            out.extend_from_slice(text);
        };
        match self {
            Self::Indexed(index) => integer(*index, 7, 0x80, out),
            Self::Literal { form, name, value } => {
                let (prefix, flags) = match form {
                    Form::Incremental => (6, 0x40),
                    Form::Without => (4, 0),
                    Form::Never => (4, 0x10),
                };
                match name {
                    Ok(index) => integer(*index, prefix, flags, out),
                    Err(name) => {
                        out.push(flags);
                        string(name, out);
                    }
                }
                string(value, out);
            }
        }
    }
}

/// A dynamic table without any art.
struct Model {
    table: VecDeque<(Vec<u8>, Vec<u8>)>,
    max: usize,
}

impl Default for Model {
    fn default() -> Self {
        Self {
            table: VecDeque::new(),
            max: 4096,
        }
    }
}

impl Model {
    fn resize(&mut self, max: usize) {
        self.max = max;
        self.evict(max);
    }

    fn evict(&mut self, max: usize) {
        while self
            .table
            .iter()
            .map(|(n, v)| n.len() + v.len() + 32)
            .sum::<usize>()
            > max
        {
            self.table.pop_back();
        }
    }

    fn entry(&self, index: usize) -> Option<(Vec<u8>, Vec<u8>)> {
        let (name, value) = match index {
            2 => (":method", "GET"),
            8 => (":status", "200"),
            15 => ("accept-charset", ""),
            61 => ("www-authenticate", ""),
            index => return self.table.get(index - 62).cloned(),
        };
        Some((name.into(), value.into()))
    }

    fn apply(&mut self, op: &Op) -> Option<(Vec<u8>, Vec<u8>)> {
        match op {
            Op::Indexed(index) => self.entry(*index),
            Op::Literal { form, name, value } => {
                let name = match name {
                    Ok(index) => self.entry(*index)?.0,
                    Err(name) => name.clone(),
                };
                if *form == Form::Incremental {
                    let size = name.len() + value.len() + 32;
                    self.evict(self.max.saturating_sub(size));
                    if size <= self.max {
                        self.table.push_front((name.clone(), value.clone()));
                    }
                }
                Some((name, value.clone()))
            }
        }
    }
}

/// RFC 7541 §5.1.
fn integer(mut value: usize, prefix: u32, flags: u8, out: &mut Vec<u8>) {
    let most = (1 << prefix) - 1;
    if value < most {
        return out.push(flags | value as u8);
    }
    out.push(flags | most as u8);
    value -= most;
    while value >= 128 {
        out.push((value % 128 + 128) as u8);
        value /= 128;
    }
    out.push(value as u8);
}
