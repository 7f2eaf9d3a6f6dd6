//! Walks through parsed expressions.

use super::types::unescape;
use cel::common::ast::{EntryExpr, Expr, IdedExpr, LiteralValue, operators};

/// Whether an expression, or one in it, is as asked for.
pub fn any(e: &IdedExpr, wanted: &dyn Fn(&Expr) -> bool) -> bool {
    let inner = |e: &IdedExpr| any(e, wanted);
    let in_entry = |e: &EntryExpr| match e {
        EntryExpr::MapEntry(m) => inner(&m.key) || inner(&m.value),
        EntryExpr::StructField(f) => inner(&f.value),
    };
    wanted(&e.expr)
        || match &e.expr {
            Expr::Unspecified | Expr::Literal(_) | Expr::Ident(_) => false,
            Expr::Select(s) => inner(&s.operand),
            Expr::Call(c) => c.target.as_ref().is_some_and(|t| inner(t)) || c.args.iter().any(inner),
            Expr::List(l) => l.elements.iter().any(inner),
            Expr::Comprehension(c) => [&c.iter_range, &c.accu_init, &c.loop_cond, &c.loop_step, &c.result]
                .iter()
                .any(|e| inner(e)),
            Expr::Map(m) => m.entries.iter().any(|e| in_entry(&e.expr)),
            Expr::Struct(s) => s.entries.iter().any(|e| in_entry(&e.expr)),
        }
}

/// Whether this expression itself selects the field, of the variable if one is given.
pub fn selects(e: &Expr, of: Option<&str>, field: &str) -> bool {
    let fits = |operand: &IdedExpr| match of {
        Some(variable) => matches!(&operand.expr, Expr::Ident(n) if n == variable),
        None => true,
    };
    match e {
        Expr::Select(s) => s.field == field && fits(&s.operand),
        Expr::Call(c) if c.func_name == operators::OPT_SELECT => match &c.args[..] {
            [operand, name] => fits(operand) && text(&name.expr) == Some(field),
            _ => false,
        },
        _ => false,
    }
}

fn text(e: &Expr) -> Option<&str> {
    match e {
        Expr::Literal(LiteralValue::String(s)) => Some(s.inner()),
        _ => None,
    }
}

/// Takes back the escaping of names that are selected, or looked up by a text that stands in the expression.
pub fn unescape_names(e: &mut IdedExpr) {
    match &mut e.expr {
        Expr::Unspecified | Expr::Literal(_) | Expr::Ident(_) => {}
        Expr::Select(s) => {
            s.field = unescape(&s.field);
            unescape_names(&mut s.operand);
        }
        Expr::Call(c) => {
            let looks_up =
                [operators::OPT_SELECT, operators::INDEX, operators::OPT_INDEX].contains(&c.func_name.as_str());
            if let (true, Some(name)) = (looks_up, c.args.get_mut(1))
                && let Some(raw) = text(&name.expr).map(unescape)
            {
                name.expr = Expr::Literal(LiteralValue::String(raw.into()));
            }
            c.target.iter_mut().for_each(|t| unescape_names(t));
            c.args.iter_mut().for_each(unescape_names);
        }
        Expr::List(l) => l.elements.iter_mut().for_each(unescape_names),
        Expr::Comprehension(c) => {
            for part in [
                &mut c.iter_range,
                &mut c.accu_init,
                &mut c.loop_cond,
                &mut c.loop_step,
                &mut c.result,
            ] {
                unescape_names(part);
            }
        }
        Expr::Map(m) => m.entries.iter_mut().for_each(|e| entry(&mut e.expr)),
        Expr::Struct(s) => s.entries.iter_mut().for_each(|e| entry(&mut e.expr)),
    }
}

fn entry(e: &mut EntryExpr) {
    match e {
        EntryExpr::MapEntry(m) => {
            unescape_names(&mut m.key);
            unescape_names(&mut m.value);
        }
        EntryExpr::StructField(f) => unescape_names(&mut f.value),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Env, Ty, Val, compile};
    use std::collections::BTreeMap;

    #[test]
    fn selected_fields_are_found_wherever_they_stand() {
        let env = Env::default().with("claims", Ty::map(Ty::String, Ty::Dyn));
        for (source, email) in [
            ("claims.email", true),
            ("claims.?email.orValue('')", true),
            ("has(claims.email)", true),
            ("['a', string(claims.email)].join(' ')", true),
            ("{'a': [claims.email]}", true),
            ("claims.list.exists(x, x == claims.email)", true),
            ("claims.email_ == 'a'", false),
            ("claims.other.email == 'a'", false),
            ("claims['email'] == 'a'", false),
        ] {
            let program = compile(source, &env).unwrap();
            assert_eq!(program.selects(Some("claims"), "email"), email, "{source}");
        }
        let nested = compile("claims.other.email == 'a'", &env).unwrap();
        assert!(nested.selects(None, "email"));
    }

    #[test]
    fn escaped_names_mean_what_they_stand_for() {
        let env = Env::default().with("claims", Ty::map(Ty::String, Ty::Dyn));
        let claims = keelson_api::value!({"a.b": {"c-d": [{"e/f": "x"}]}});
        for source in [
            "claims.a__dot__b.c__dash__d[0].e__slash__f",
            "claims['a__dot__b'].?c__dash__d.orValue([])[0]['e__slash__f']",
            "claims.a__dot__b.c__dash__d.map(x, x.e__slash__f)[0]",
        ] {
            let (plain, program) = (compile(source, &env).unwrap(), compile(source, &env).unwrap());
            let program = program.with_escaped_names();
            let activation = BTreeMap::from([("claims", Val::of_json(&claims, None))]);
            let found = program.eval(&activation, 1000).0.unwrap();
            assert_eq!(found.as_str(), Some("x"), "{source}");
            assert!(plain.eval(&activation, 1000).0.is_err());
        }
    }
}
