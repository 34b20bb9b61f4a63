//! The attribute `#[polyloop::main]`. Works on tokens: a function's header and its body are all it has to tell apart.
#![forbid(unsafe_code)]

use proc_macro::{Delimiter, Group, TokenStream, TokenTree};

/// Makes an `async fn main` the program's main function: becomes a worker where a pool has started this process as one
/// ([`init`](https://docs.rs/polyloop/latest/polyloop/fn.init.html)), and else runs on tokio's runtime of many threads,
/// or with `#[polyloop::main(current_thread)]` on that of one.
#[proc_macro_attribute]
pub fn main(options: TokenStream, function: TokenStream) -> TokenStream {
    let runtime = match options.to_string().as_str() {
        "" => "many_threads",
        "current_thread" => "current_thread",
        _ => return refuse("write #[polyloop::main] or #[polyloop::main(current_thread)]"),
    };
    wrap(function.into_iter().collect(), runtime).unwrap_or_else(|| refuse("#[polyloop::main] is for an async fn"))
}

/// `fn main() -> R { async fn main() -> R { .. } init(); run(main()) }`: with the function as it was inside, errors in it
/// are told where they are.
fn wrap(mut tokens: Vec<TokenTree>, runtime: &str) -> Option<TokenStream> {
    let inner: TokenStream = tokens.iter().skip_while(|token| is_attribute(token)).cloned().collect();
    let is_async = |token: &TokenTree| matches!(token, TokenTree::Ident(word) if word.to_string() == "async");
    tokens.remove(tokens.iter().position(is_async)?);
    let TokenTree::Group(body) = tokens.pop()? else { return None };
    if body.delimiter() != Delimiter::Brace {
        return None;
    }
    let rest = format!("::polyloop::init(); ::polyloop::__private::{runtime}(main())");
    let mut outer = inner;
    outer.extend(rest.parse::<TokenStream>().ok()?);
    tokens.push(TokenTree::Group(Group::new(Delimiter::Brace, outer)));
    Some(tokens.into_iter().collect())
}

/// Attributes and doc comments come first, and stay outside.
fn is_attribute(token: &TokenTree) -> bool {
    match token {
        TokenTree::Punct(punct) => punct.as_char() == '#',
        TokenTree::Group(group) => group.delimiter() == Delimiter::Bracket,
        TokenTree::Ident(_) | TokenTree::Literal(_) => false,
    }
}

fn refuse(message: &str) -> TokenStream {
    format!("::core::compile_error!({message:?});").parse().unwrap_or_default()
}
