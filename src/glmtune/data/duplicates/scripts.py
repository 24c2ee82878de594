"""Characters by which simplified and traditional Chinese are told apart.

Only pairs whose two sides belong to one script each: characters such as 后, 里, 乾 or 著, which are found in both, are
left out, as are rare ones. To tell scripts apart, a few hundred frequent characters do as well as a dictionary.
"""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

_SIMPLIFIED = (
    "们这来时国说对会为开过还没样问从两长间现见经进动学给让边听书车门话种应关点电业产实机员气发头认觉爱岁师孩亲"
    "请谁谢诉语许论证识读谈该课调变记设计议词译详误谓谊谋谎谐谦谱讲让训讯访诗诚误诸诺课谅贝财责败货质贩贪贫购贵费"
    "资赏赐赔赛赞赢赶趋跃轮软轻较辆辈输边达迁运远违连迟适选递逻遗邮邻释鉴针钟钢钱铁银铜链销锁错锋锅键镇镜长闭问闲"
    "闹闻阅阔队阳阴阵阶际陆陈险随隐难雾静页顶项顺须顾顿预领频题额颜风飞饭饮饰饱饼馆马驶驻骂骗骑验惊鱼鲁鲜鸟鸡鸣鸭"
    "麦黄龙龄众优伤伟传债仅侧侨俭兑兰兴养兽冲决况冻净凉减凤凭击划刘则刚创剂剑剧劝办务劳势匀区医华协单卖卢卫却厂厅"
    "历压厌县参双叶号叹吓吗启员呜咏响唤啸园围图圆圣场坏块坚坛垄垦墙处备复够夺奋奖妆妇妈娱宁宝审宫宽宾寻导寿将尔"
    "尘尝层属岗岛岭币帅帐带帮废库庆庙庄应异弃张弹强归录彻径忆忧怀态怜总恋恶恼悬惧惨惯愤愿懒戏战户扑执扩扫扬扰抚抛"
    "护报担拟拥择挂挡挥损换据掷摄摆摇敌数断旧旷昼显晓晒暂术杀杂权条杨极构枪柜标栏树桥桩档梦检楼榄欢欧毁毕氢汇汉汤"
    "沟泪泽洁浅测济浓涂涛润涨温湾湿满滤滥滨灭灯灵灾炉炼烁烂烛烟烦烧热焕牵犹独狮猎献环玛画畅疗疯盏盐监盘睁矿码础确"
    "礼祸离秃积称稳穷窝竞笔笼筑签简类粮纠红纤约级纪纯纱纲纳纵纷纸纹纺线练组细织终绍经绑结绕绘络绝统继绩绪续维综绿"
    "缓编缘缩网罗罚职联聪肃肠肤肿胀胁胆胜脉脑脚脸艺节芦苏苹茧荐荣药莲获虏虑虚虫虽蚀蚁蛮补衬袭装观规视览触计订"
)
_TRADITIONAL = (
    "們這來時國說對會為開過還沒樣問從兩長間現見經進動學給讓邊聽書車門話種應關點電業產實機員氣發頭認覺愛歲師孩親"
    "請誰謝訴語許論證識讀談該課調變記設計議詞譯詳誤謂誼謀謊諧謙譜講讓訓訊訪詩誠誤諸諾課諒貝財責敗貨質販貪貧購貴費"
    "資賞賜賠賽贊贏趕趨躍輪軟輕較輛輩輸邊達遷運遠違連遲適選遞邏遺郵鄰釋鑒針鐘鋼錢鐵銀銅鏈銷鎖錯鋒鍋鍵鎮鏡長閉問閒"
    "鬧聞閱闊隊陽陰陣階際陸陳險隨隱難霧靜頁頂項順須顧頓預領頻題額顏風飛飯飲飾飽餅館馬駛駐罵騙騎驗驚魚魯鮮鳥雞鳴鴨"
    "麥黃龍齡眾優傷偉傳債僅側僑儉兌蘭興養獸衝決況凍淨涼減鳳憑擊劃劉則剛創劑劍劇勸辦務勞勢勻區醫華協單賣盧衛卻廠廳"
    "歷壓厭縣參雙葉號嘆嚇嗎啟員嗚詠響喚嘯園圍圖圓聖場壞塊堅壇壟墾牆處備復夠奪奮獎妝婦媽娛寧寶審宮寬賓尋導壽將爾"
    "塵嘗層屬崗島嶺幣帥帳帶幫廢庫慶廟莊應異棄張彈強歸錄徹徑憶憂懷態憐總戀惡惱懸懼慘慣憤願懶戲戰戶撲執擴掃揚擾撫拋"
    "護報擔擬擁擇掛擋揮損換據擲攝擺搖敵數斷舊曠晝顯曉曬暫術殺雜權條楊極構槍櫃標欄樹橋樁檔夢檢樓欖歡歐毀畢氫匯漢湯"
    "溝淚澤潔淺測濟濃塗濤潤漲溫灣濕滿濾濫濱滅燈靈災爐煉爍爛燭煙煩燒熱煥牽猶獨獅獵獻環瑪畫暢療瘋盞鹽監盤睜礦碼礎確"
    "禮禍離禿積稱穩窮窩競筆籠築簽簡類糧糾紅纖約級紀純紗綱納縱紛紙紋紡線練組細織終紹經綁結繞繪絡絕統繼績緒續維綜綠"
    "緩編緣縮網羅罰職聯聰肅腸膚腫脹脅膽勝脈腦腳臉藝節蘆蘇蘋繭薦榮藥蓮獲虜慮虛蟲雖蝕蟻蠻補襯襲裝觀規視覽觸計訂"
)
# Found in texts of the other script too: as another word, in names, or as an accepted variant.
_SHARED = set("没沒历叶冲复宁帐签获划准症凭赞强虚黄静净录够减况决凉户烟温湾启挂泪晒咏脚却双周")

_PAIRS = {
    simplified: traditional
    for simplified, traditional in zip(_SIMPLIFIED, _TRADITIONAL, strict=True)
    if simplified != traditional and not {simplified, traditional} & _SHARED
}
_SIMPLIFIED_ONLY = re.compile(f"[{''.join(_PAIRS)}]")
_TRADITIONAL_ONLY = re.compile(f"[{''.join(_PAIRS.values())}]")

TO_SIMPLIFIED: Mapping[int, str] = MappingProxyType({ord(there): here for here, there in _PAIRS.items()})
"""For `str.translate`: the simplified form of each traditional character of the table."""

Script = Literal["simplified", "traditional", "mixed", "unknown"]


def script_of(text: str) -> Script:
    """The script of a text; `mixed` with at least two characters that only one script has, of each."""
    if not _TRADITIONAL_ONLY.search(text):
        return "simplified" if _SIMPLIFIED_ONLY.search(text) else "unknown"
    simplified, traditional = set(_SIMPLIFIED_ONLY.findall(text)), set(_TRADITIONAL_ONLY.findall(text))
    if not simplified:
        return "traditional" if len(traditional) > 1 else "unknown"
    return "mixed" if min(len(simplified), len(traditional)) > 1 else "unknown"
