"""The rules for Chinese: what is to be programmed."""

from glmtune.data.conversion.rule import Form, Rule

_WHAT = r"函数|方法|程序|代码|脚本|算法|类|小程序|查询语句|查询|语句|正则表达式|命令|接口|爬虫|装饰器|宏|网页|存储过程"
_WRITE = r"写出|编写|写|实现|生成|给出|创建|设计|开发|编"
_LANGUAGE = r"(?:[A-Za-z][A-Za-z+#.\d ]{0,14}|C语言|汇编)(?:语言|代码)?"
_DOES = r"(?:要求|用来|用于|来|以|使其能?|功能是|作用是)?"

RULES = (
    Rule(
        "write",
        forms=(
            Form(
                reads=(
                    rf"(?:请)?(?:用|使用|利用|基于){{t}}(?:来)?(?:{_WRITE}){{count}}{{s}}[，,：:；; ]*{_DOES}{{x}}",
                    rf"(?:{_WRITE}){{count}}{{t}}(?:的)?{{s}}[，,：:；; ]+{_DOES}{{x}}",
                    rf"(?:{_WRITE}){{count}}{{t}}(?:的)?{{s}}(?:用来|用于|来|以)?(?P<x>(?:实现|计算|判断|输出|打印"
                    rf"|求|统计|读取|生成)[^。？！?!\n的]{{3,80}})",
                ),
                task="请用{t}写{count}{s}，完成下面的功能。",
                asks="请用{t}写{count}{s}，{x}。",
                where={"t": _LANGUAGE, "s": _WHAT, "count": "一?[个段条种句]?", "x": r"[^。？！?!\n]{3,100}?"},
            ),
            Form(
                reads=(rf"(?:{_WRITE}){{count}}{{s}}[，,：:；; ]*{_DOES}{{x}}",),
                task="请写{count}{s}，完成下面的功能。",
                asks="请写{count}{s}，{x}。",
                where={"s": _WHAT, "count": "一?[个段条种句]", "x": r"(?!的)[^。？！?!\n]{4,100}?"},
            ),
            Form(
                reads=(rf"(?:用|使用|利用){{t}}(?:来)?(?:{_WRITE}|做|完成)(?:一个|一段|一种|个|段|出)?{{x}}",),
                task="请用{t}实现下面的内容。",
                asks="请用{t}写一个{x}。",
                where={"t": _LANGUAGE, "x": r"[^。？！?!\n：:]{3,60}?"},
            ),
            Form(
                reads=(),
                task="请用{t}完成下面的事情。",
                asks="请用{t}{x}。",
                where={
                    "t": r"[A-Za-z][A-Za-z+#.\d]{0,14}(?:语言|语句)?",
                    "x": r"(?:查询|统计|计算|判断|读取|打印|输出|求|画|绘制|排序|爬取|遍历|删除|合并"
                    r"|解析)[^。？！?!\n：:]{2,60}",
                },
            ),
        ),
    ),
)
